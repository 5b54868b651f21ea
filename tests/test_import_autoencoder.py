"""An AutoencoderKL of diffusers as frozen stage 1: the same numbers, and a stage 2 can be trained on it."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY_2
from diffusers import AutoencoderKL, UNet2DModel
from safetensors.torch import load_file, save_file

from autoencoder import AutoencoderModule, load_autoencoder
from configs.autoencoder_cfg import ImportedCfg
from configs.run_folder import newest_complete
from diffusion import DiffusionModule, load_diffusion
from models import imported_vae
from scripts.import_autoencoder import main as take


def small(channels: int) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=channels, out_channels=channels, latent_channels=4, block_out_channels=(8, 8, 16),
        norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip


def lacking(folder: Path, **others: torch.Tensor) -> None:
    """An autoencoder without the weights of its encoder, or with ``others`` in their place."""
    small(1).save_pretrained(folder)
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    kept = weights | others if others else {name: w for name, w in weights.items() if not name.startswith("encoder.")}
    save_file(kept, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", params=[3, 1])
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoencoderKL]:
    folder = tmp_path_factory.mktemp("vae")
    net = small(request.param).eval()
    net.save_pretrained(folder / "vae")
    take(["animals-tiny", "--vae", str(folder / "vae"), "--runs", str(folder / "runs"), "--data.limit", "40"])
    (run,) = (folder / "runs").iterdir()
    return run / "last.ckpt", net


def test_it_encodes_and_decodes_as_diffusers_does(imported: tuple[Path, AutoencoderKL]) -> None:
    path, net = imported
    module = load_autoencoder(path)
    x = torch.rand(2, 1, 32, 32).round()
    wide = (2 * x - 1).expand(-1, net.config.in_channels, -1, -1)
    with torch.no_grad():
        theirs = net.encode(wide).latent_dist
        mask = (net.decode(theirs.mean).sample / 2 + 0.5).mean(1, keepdim=True).clamp(0, 1)
    posterior = module.posterior(x)
    torch.testing.assert_close(posterior.mean * module.latent_std + module.latent_mean, theirs.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.logvar + 2 * module.latent_std.log(), theirs.logvar, rtol=0, atol=1e-5)
    p = module.to_pixels(module.to_latent(x)).sigmoid()
    torch.testing.assert_close(p, mask, rtol=0, atol=imported_vae.EDGE + 1e-5)
    assert module.latent_shape == (4, 8, 8)
    *features, last = module.average.decoder_features(theirs.mean)
    assert len(features) == 4
    torch.testing.assert_close(last, imported_vae.PROBABILITY_SCALE * p, rtol=0, atol=1e-4)


def test_its_checkpoint_holds_each_weight_once_and_is_found_by_stage_2(imported: tuple[Path, AutoencoderKL]) -> None:
    path, net = imported
    weights = sum(p.nbytes for p in net.parameters())
    assert path.stat().st_size < 1.5 * weights + 100_000
    module = load_autoencoder(path)
    assert module.complete
    assert isinstance(module.cfg.autoencoder, ImportedCfg)
    assert newest_complete(str(path.parents[1]), "autoencoder", module.data) == path
    state = module.average.state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(state[f"net.{name}"], value), name


def test_a_stage_2_learns_on_it_and_its_file_draws_alone(imported: tuple[Path, AutoencoderKL], tmp_path: Path) -> None:
    autoencoder: AutoencoderModule = load_autoencoder(imported[0])
    module = DiffusionModule(TINY_2, autoencoder, autoencoder.data)
    x1 = module.latents({"image": torch.rand(4, 1, 32, 32).round()})
    loss, _ = module.sampler.loss(module.net, x1, module.encode_text(["a cat"] * 4), teacher=module.teacher)
    loss.backward()
    assert not any(p.requires_grad for p in module.autoencoder.parameters())
    content = {"state_dict": module.state_dict(), "global_step": 1}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    noise = torch.randn(2, *module.latent_shape)
    drawn = load_diffusion(tmp_path / "a.ckpt").generate(["a cat", ""], noise, steps=1)
    assert drawn.shape == (2, 1, 32, 32)
    assert torch.equal(drawn, module.eval().generate(["a cat", ""], noise, steps=1))


@pytest.mark.parametrize(("extra", "told"), [
    ([], "vae is empty"),
    (["--vae", "nowhere/at/all"], "could not be read as an AutoencoderKL"),
    (["--vae", "VAE", "--data.channels", "3"], "but data.channels is 3"),
    (["--vae", "VAE", "--data.image-size", "30"], "take a multiple of 4"),
    (["--vae", "UNET"], "but its weights lack decoder.conv_in.bias or hold it in another shape"),
    (["--vae", "HALF"], "but its weights lack encoder.conv_in.bias or hold it in another shape"),
    (["--vae", "OTHER"], "but its weights lack decoder.conv_out.weight or hold it in another shape (as 1 of"),
])  # fmt: skip
def test_what_cannot_be_imported_is_refused_in_one_sentence(
    extra: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    small(1).save_pretrained(tmp_path / "vae")
    UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    lacking(tmp_path / "half")
    lacking(tmp_path / "other", **{"decoder.conv_out.weight": torch.zeros(1, 3, 3, 3)})
    words = [str(tmp_path / word.lower()) if word.isupper() else word for word in extra]
    with pytest.raises(SystemExit) as end:
        take(["animals-tiny", "--runs", str(tmp_path / "runs"), *words])
    assert end.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_holds_a_training_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"mine")
    with pytest.raises(SystemExit, match="2"):
        take(["animals-tiny", "--vae", str(tmp_path / "none"), "--run-dir", str(tmp_path)])
    assert "already holds a training: name another folder" in capsys.readouterr().err


def test_without_diffusers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported_vae, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        imported_vae.ImportedVAE(ImportedCfg(config=json.dumps({})), 1)
