"""Encoded training sets that outlive a training."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_DATA

from configs.data_cfg import AugmentCfg
from data.datasets import to_tensor
from data.latent_file import KEPT, keep_latents, last_used, latents_key, read_latents
from data.module import MaskDataModule
from diffusion import DiffusionModule
from trainer import cache_latents

ROOT = Path(__file__).parents[1]
MASKS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
MOMENTS = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def test_what_is_kept_is_read_back_bit_for_bit_and_mapped(tmp_path: Path) -> None:
    assert read_latents(tmp_path / "latents", "k") is None
    keep_latents(tmp_path / "latents", "k", MOMENTS)
    found = read_latents(tmp_path / "latents", "k")
    assert found is not None
    assert torch.equal(found, MOMENTS)
    assert read_latents(tmp_path / "latents", "other") is None
    before = (tmp_path / "latents" / "k.npy").read_bytes()
    found.zero_()
    assert (tmp_path / "latents" / "k.npy").read_bytes() == before


def test_the_key_tells_masks_and_ways_apart() -> None:
    changed = MASKS.copy()
    changed[0, 0, 0] += 1
    keys = [
        latents_key(MASKS, "2 fp32"), latents_key(changed, "2 fp32"), latents_key(MASKS.reshape(2, 4, 3), "2 fp32"),
        latents_key(MASKS, "2 bf16"),
    ]
    assert len(set(keys)) == len(keys)
    assert latents_key(MASKS.copy(), "2 fp32") == keys[0]


def test_the_files_used_longest_ago_go(tmp_path: Path) -> None:
    for number in range(KEPT):
        keep_latents(tmp_path, str(number), MOMENTS)
        os.utime(tmp_path / f"{number}.npy", (number, number))
    assert read_latents(tmp_path, "0") is not None  # used now
    keep_latents(tmp_path, "new", MOMENTS)
    assert {path.stem for path in tmp_path.glob("*")} == {"0", "2", "3", "new"}


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_encoded_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k.npy").write_bytes(content)
    assert read_latents(tmp_path, "k") is None
    keep_latents(tmp_path, "k", torch.ones(2, 3))
    assert torch.equal(read_latents(tmp_path, "k"), torch.ones(2, 3))


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="not kept for the next training"):
        keep_latents(tmp_path / "file", "k", MOMENTS)


def test_several_processes_keep_and_remove_at_once(tmp_path: Path) -> None:
    assert last_used(tmp_path / "removed.npy") == 0
    code = (
        "import sys, torch; from pathlib import Path; from data.latent_file import keep_latents\n"
        "for number in range(150): keep_latents(Path(sys.argv[1]), str(number), torch.zeros(1, 2, 2, 2, 2))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in processes:
        assert process.communicate()[1] == b""
    assert len(list(tmp_path.glob("*.npy"))) <= KEPT + 2  # what another one wrote meanwhile
    assert not list(tmp_path.glob(".*"))


def test_kept_latents_are_the_encoders_and_belong_to_one_autoencoder(
    tiny_diffusion: DiffusionModule, tmp_path: Path
) -> None:
    cfg = replace(TINY_DATA, augment=AugmentCfg(hflip=0.5))
    tiny_diffusion.cfg = replace(tiny_diffusion.cfg, data=cfg)
    data = MaskDataModule(cfg, 0)
    data.setup()
    cache_latents(tiny_diffusion, data, tmp_path)
    assert data._moments is not None
    first, x = data._moments.clone(), to_tensor(data.train_set.images)
    for variant, images in enumerate((x, x.flip(-1))):
        posterior = tiny_diffusion.autoencoder.posterior(images)
        moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
        torch.testing.assert_close(first[variant].float(), moments, rtol=0, atol=1e-4)
    tiny_diffusion.autoencoder.latent_mean.add_(1)
    cache_latents(tiny_diffusion, data, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert not torch.equal(data._moments, first)
