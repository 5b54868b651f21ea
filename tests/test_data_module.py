"""Batches, their order over ranks and epochs, resuming, and cached latents."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from configs.data_cfg import AugmentCfg, DataCfg, FolderSource
from data.datasets import ImageDataset
from data.masks import DataError
from data.module import MaskDataModule
from data.order import FLIP, EpochSampler, uniform
from tests.data_fixtures import random_masks, write_masks


def _module(n: int = 20, n_val: int = 5, **cfg: Any) -> MaskDataModule:
    """A module over noise, which needs no files."""
    module = MaskDataModule(DataCfg(image_size=8, **({"batch_size": 4} | cfg)), seed=3)
    module.train_set, module.val_set = random_masks(n), random_masks(n_val, seed=1)
    module.setup("fit")
    return module


def _epoch(module: MaskDataModule, epoch: int) -> list[dict[str, Any]]:
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_batches_hold_images_prompts_and_indices_that_belong_together() -> None:
    module = _module()
    batches = _epoch(module, 0)
    assert len(batches) == 5
    for batch in batches:
        index = batch["index"].numpy()
        assert batch["image"].dtype == torch.float32
        assert batch["index"].dtype == torch.int64
        np.testing.assert_array_equal(batch["image"].numpy(), module.train_set.images[index][:, None])
        assert batch["prompt"] == [f"prompt {i}" for i in index]
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(20))


def test_rgb_batches_are_channels_first_in_zero_to_one(tmp_path: Path) -> None:
    write_masks(tmp_path, 12)
    module = MaskDataModule(DataCfg(source=FolderSource(str(tmp_path)), image_size=8, channels=3, batch_size=2), seed=0)
    module.setup()
    loaded = module.train_set
    module.setup()
    assert module.train_set is loaded
    for batch in _epoch(module, 0):
        expected = module.train_set.images[batch["index"].numpy()].transpose(0, 3, 1, 2) / np.float32(255)
        np.testing.assert_array_equal(batch["image"].numpy(), expected)


def test_validation_is_whole_in_order_and_not_augmented() -> None:
    module = _module(n_val=7, augment=AugmentCfg(hflip=1.0, vflip=1.0))
    batches = list(module.val_dataloader())
    assert [len(batch["index"]) for batch in batches] == [4, 3]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(7))
    images = torch.cat([batch["image"] for batch in batches]).numpy()
    np.testing.assert_array_equal(images, module.val_set.images[:, None])
    assert [prompt for batch in batches for prompt in batch["prompt"]] == module.val_set.prompts


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(50, 5, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    for other in (order(1, 3), order(2, 2)):
        assert [index for _, index in other] != [index for _, index in order(1, 2)]
        assert sorted(index for _, index in other) == list(range(50))
    assert {epoch for epoch, _ in order(1, 3)} == {3}


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_share_an_epoch_in_equal_parts_without_overlap(world: int) -> None:
    shares = [list(EpochSampler(50, 5, 1, rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {50 // world} == {len(EpochSampler(50, 5, 1, 0, world))}
    seen = [index for share in shares for _, index in share]
    assert len(set(seen)) == len(seen)
    interleaved = [index for row in zip(*shares, strict=True) for _, index in row]
    assert interleaved == [index for _, index in EpochSampler(50, 5, 1)][: len(interleaved)]


def test_an_epoch_left_after_some_batches_goes_on_with_the_others() -> None:
    whole = [key for epoch in range(3) for key in _keys(EpochSampler(22, 4, 9), epoch)[:20]]
    for done in range(10):
        epoch = done // 5
        rest = list(EpochSampler(22, 4, 9, batches_done=lambda done=done: done))  # type: ignore[misc]  # mypy cannot infer the default
        assert rest[: 20 - 4 * (done % 5)] == whole[4 * done : 20 * (epoch + 1)]


def _keys(sampler: EpochSampler, epoch: int) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize(("size", "world", "batches"), [(49, 1, 12), (49, 2, 6), (24, 2, 3)])
def test_an_epoch_has_whole_groups_of_batches(size: int, world: int, batches: int) -> None:
    sampler = EpochSampler(size, 4, 0, 0, world, group=3)
    assert len(sampler) == len(list(sampler)) == 4 * batches
    assert list(sampler) == list(EpochSampler(size, 4, 0, 0, world))[: 4 * batches]


def test_fewer_masks_than_processes_is_an_error() -> None:
    with pytest.raises(DataError, match="2 training masks cannot be shared by 3 processes"):
        EpochSampler(2, 1, 0, 0, 3)


def test_a_batch_larger_than_the_set_becomes_the_set_with_a_warning() -> None:
    module = _module(n=6, batch_size=100)
    with pytest.warns(UserWarning, match="batch_size is 100, but each process has only 6"):
        batches = _epoch(module, 0)
    assert [sorted(batch["index"].tolist()) for batch in batches] == [list(range(6))]


def test_uniform_draws_are_uniform_and_independent_of_their_neighbours() -> None:
    epochs, indices = np.divmod(np.arange(200_000), 1000)
    drawn = uniform(11, epochs, indices, FLIP)
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 500  # five standard deviations
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.012
    assert abs(np.corrcoef(drawn[:-1000], drawn[1000:])[0, 1]) < 0.012


def test_only_mirrored_or_plain_images_come_out_of_hflip_in_the_right_share() -> None:
    masks = random_masks(500)
    images = ImageDataset(masks, AugmentCfg(hflip=0.3), 1).__getitems__([(2, i) for i in range(500)])["image"].numpy()
    plain, mirror = masks.images[:, None], masks.images[:, None, :, ::-1]
    is_plain, is_mirror = (images == plain).all(axis=(1, 2, 3)), (images == mirror).all(axis=(1, 2, 3))
    assert (is_plain | is_mirror).all()
    assert 0.2 < is_mirror.mean() < 0.4


@pytest.mark.parametrize("hflip", [0.0, 0.5, 1.0])
def test_cached_latents_are_those_of_the_images_that_would_have_been_shown(hflip: float) -> None:
    module = _module(n=22, augment=AugmentCfg(hflip=hflip))
    variants = 2 if hflip else 1
    moments = torch.full((variants, 22, 2, 8, 8), torch.nan)
    order = []
    for variant, rows, images in module.variant_batches(batch_size=5):
        order.append((variant, rows.start, rows.stop))
        moments[variant, rows] = torch.cat([images, 10 * images], dim=1)
    assert order == [(v, a, b) for v in range(variants) for a, b in ((0, 5), (5, 10), (10, 15), (15, 20), (20, 22))]
    shown = [_epoch(module, epoch) for epoch in range(3)]
    module.use_latents(moments)
    for epoch in range(3):
        cached = _epoch(module, epoch)
        assert len(cached) == len(shown[epoch]) == 5
        for latents, expected in zip(cached, shown[epoch], strict=True):
            assert set(latents) == {"moments", "prompt", "index"}
            assert latents["index"].equal(expected["index"])
            assert latents["prompt"] == expected["prompt"]
            assert latents["moments"].equal(torch.cat([expected["image"], 10 * expected["image"]], dim=1))
    module.use_latents(moments, with_images=True)
    for beside, expected in zip(_epoch(module, 1), shown[1], strict=True):
        assert beside["image"].equal(expected["image"])
        assert beside["moments"].equal(torch.cat([expected["image"], 10 * expected["image"]], dim=1))
    assert "image" in next(iter(module.val_dataloader()))


def test_latents_of_another_shape_or_of_endless_variants_are_refused() -> None:
    module = _module(n=10, augment=AugmentCfg(hflip=0.5))
    for shape in ((1, 10, 2, 4, 4), (2, 9, 2, 4, 4), (10, 2, 4, 4)):
        with pytest.raises(DataError, match="2 variants of 10 masks are needed"):
            module.use_latents(torch.zeros(shape))
    with pytest.raises(DataError, match="as they are or mirrored"):
        next(_module(augment=AugmentCfg(affine=0.1)).variant_batches(4))


@pytest.mark.parametrize("augment", [AugmentCfg(hflip=0.5), AugmentCfg(hflip=0.5, rot90=0.5)], ids=["hflip", "rot90"])
def test_loader_processes_that_outlive_an_epoch_draw_the_same_images(augment: AugmentCfg) -> None:
    here, workers = _module(augment=augment), _module(augment=augment, workers=2)
    loader = workers.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        for one, two in zip(_epoch(here, epoch), loader, strict=True):
            assert one["index"].equal(two["index"])
            assert one["image"].equal(two["image"])


ROOT = Path(__file__).parents[1]
KILLED_LOADER = """
import os, signal
from tests.test_data_module import _module
batches = iter(_module(n=400, workers=1).train_dataloader())
next(batches)
(process,) = batches._workers  # where torch keeps them
os.kill(process.pid, signal.SIGKILL)
print("killed", flush=True)
list(batches)
print("survived")
"""


@pytest.mark.slow  # in a process of its own, because torch tells of the loss by a signal that can arrive late
def test_a_killed_loader_process_is_an_error_and_no_endless_wait() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_LOADER], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "killed\n"  # what torch says of it on stderr differs with the moment of the loss


class _Recorder(L.LightningModule):
    """Learns one number and remembers the indices it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        self.seen.append(batch["index"].tolist())
        return (self.weight - batch["image"].mean()) ** 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(root: Path, steps: int, ckpt: Path | None = None, **options: Any) -> tuple[_Recorder, L.Trainer]:
    recorder = _Recorder()
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
        limit_val_batches=0, default_root_dir=root, **options,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=_module(n=22), ckpt_path=ckpt, weights_only=True)
    return recorder, trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_resumed_training_goes_on_with_the_batches_not_yet_seen(stop: int, tmp_path: Path) -> None:
    whole, _ = _fit(tmp_path, 12)
    expected = [batch["index"].tolist() for epoch in range(3) for batch in _epoch(_module(n=22), epoch)]
    assert whole.seen == expected[:12]
    first, trainer = _fit(tmp_path, stop)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    rest, _ = _fit(tmp_path, 12, tmp_path / "a.ckpt")
    assert first.seen + rest.seen == whole.seen
    assert rest.weight.equal(whole.weight)
