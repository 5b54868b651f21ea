"""A stage 1 for larger masks whose latents are those of a smaller one, and the stage 2 that goes on with them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_1, TINY_2
from torch import nn
from torch.nn import functional as F

from autoencoder import AutoencoderModule, load_autoencoder
from configs.autoencoder_cfg import AutoencoderCfg, ImportedCfg, MaskLossCfg, Stage1Cfg
from configs.beginning import grown
from configs.checks import ConfigError
from configs.data_cfg import DataCfg, MnistSource
from configs.diffusion_cfg import SketchCfg
from data.sources import data_fingerprint
from diffusion import DiffusionModule, load_diffusion
from models.checkpoint import CheckpointError
from models.sketch import looked_at
from models.vae import VAE
from scripts.edits import make_sketch
from scripts.evaluate import enlarged_to, sketches_of
from scripts.export import main as export
from scripts.train_stage_1 import main as train_stage_1
from scripts.train_stage_2 import main as train_stage_2
from trainer import checked_autoencoder, warn_of_known

SIZES = (32, 64, 96)
QUICK = [
    "--data.limit", "16", "--data.batch-size", "8", "--data.val-fraction", "0.005", "--train.max-steps", "2",
    "--train.val-every", "2", "--train.previews", "False", "--train.accelerator", "cpu", "--train.precision", "fp32",
]  # fmt: skip


def larger(x: torch.Tensor, times: int) -> torch.Tensor:
    return x.repeat_interleave(times, -1).repeat_interleave(times, -2)


def of_size(module: AutoencoderModule, size: int, init: str = "model") -> AutoencoderModule:
    """Grown, not trained."""
    cfg = grown(replace(TINY_1, init=init, data=replace(TINY_1.data, image_size=size)), module.cfg)
    found = AutoencoderModule(cfg, module.data)
    found.grow_from(module)
    found.complete = True
    return found.eval()


def saved(module: AutoencoderModule | DiffusionModule, path: Path) -> Path:
    content: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 2}
    module.on_save_checkpoint(content)
    torch.save(content, path)
    return path


@pytest.fixture
def model(tiny_diffusion: DiffusionModule, tmp_path: Path) -> Path:
    tiny_diffusion.complete = True
    return saved(tiny_diffusion, tmp_path / "model.ckpt")


@pytest.mark.parametrize(("patch", "channels"), [(1, 1), (2, 1), (4, 3), (3, 2)])
def test_a_patch_shrinks_the_image_by_its_side(patch: int, channels: int) -> None:
    cfg = AutoencoderCfg(patch=patch, width=8, multipliers=(1, 2), latent_channels=3)
    vae, x = VAE(cfg, channels), torch.rand(2, channels, 12 * patch, 8 * patch)
    assert cfg.factor == 2 * patch
    posterior = vae.encode(x)
    assert posterior.mean.shape == (2, 3, 6, 4)
    assert vae.decode(posterior.mean).shape == x.shape
    *_, p = vae.decoder_features(posterior.mean)
    torch.testing.assert_close(p / 4, vae.decode(posterior.mean).sigmoid())


def test_each_square_is_answered_at_its_place() -> None:
    """The k-th of the last filters answers the k-th pixel of each square, row by row."""
    vae = VAE(AutoencoderCfg(patch=4, width=8, multipliers=(1, 1)), 1)
    last = vae.decoder[-1]
    assert isinstance(last, nn.Conv2d)
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.arange(16.0))  # type: ignore[union-attr]  # made with one
    square = vae.decode(torch.randn(1, 4, 2, 2))[0, 0]
    torch.testing.assert_close(square, torch.arange(16.0).view(4, 4).tile(4, 4))


@pytest.mark.parametrize("size", SIZES)
def test_before_it_is_trained_it_draws_what_the_smaller_one_draws(
    tiny_autoencoder: AutoencoderModule, size: int
) -> None:
    module, times = of_size(tiny_autoencoder, size), size // 32
    x = (torch.rand(3, 1, 32, 32) > 0.5).float()
    torch.testing.assert_close(module.to_latent(larger(x, times)), tiny_autoencoder.to_latent(x), rtol=0, atol=1e-5)
    z = tiny_autoencoder.to_latent(x)
    torch.testing.assert_close(module.to_pixels(z), larger(tiny_autoencoder.to_pixels(z), times), rtol=0, atol=1e-5)


def test_all_channels_of_an_image_grow() -> None:
    torch.manual_seed(0)
    small = VAE(AutoencoderCfg(patch=2, width=8, multipliers=(1, 2)), 3).eval()
    large = VAE(AutoencoderCfg(patch=4, width=8, multipliers=(1, 2)), 3).eval()
    large.grow_from(small)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(large.encode(larger(x, 2)).mean, small.encode(x).mean, rtol=0, atol=1e-5)
    z = small.encode(x).mean
    torch.testing.assert_close(large.decode(z), larger(small.decode(z), 2), rtol=0, atol=1e-5)
    assert large.reading().keys() == small.reading().keys()
    for name, value in large.reading().items():
        torch.testing.assert_close(value, small.reading()[name], msg=name)


def test_it_reads_the_means_of_squares(tiny_autoencoder: AutoencoderModule) -> None:
    x = (torch.rand(3, 1, 64, 64) > 0.5).float()
    grey = tiny_autoencoder.to_latent(F.avg_pool2d(x, 2))
    torch.testing.assert_close(of_size(tiny_autoencoder, 64).to_latent(x), grey, rtol=0, atol=1e-5)


def test_what_has_grown_grows_on(tiny_autoencoder: AutoencoderModule) -> None:
    twice = of_size(of_size(tiny_autoencoder, 64), 192)
    once = of_size(tiny_autoencoder, 192)
    assert twice.cfg.autoencoder.patch == 6
    for name, value in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], value, msg=name)


def test_latents_are_shared_by_what_has_grown_and_by_nothing_else(tiny_autoencoder: AutoencoderModule) -> None:
    one, two = of_size(tiny_autoencoder, 64), of_size(tiny_autoencoder, 96)
    for weight in one.average.decoder.parameters():
        nn.init.normal_(weight)
    assert one.shares_latents(tiny_autoencoder)
    assert two.shares_latents(one)
    stranger = AutoencoderModule(TINY_1)
    stranger.latent_mean.copy_(one.latent_mean)
    stranger.latent_std.copy_(one.latent_std)
    assert not stranger.shares_latents(one)
    one.latent_std.mul_(1.1)
    assert not one.shares_latents(tiny_autoencoder)
    wide = AutoencoderModule(replace(TINY_1, autoencoder=AutoencoderCfg(width=16)))
    assert not wide.shares_latents(tiny_autoencoder)


@pytest.mark.parametrize(("ours", "theirs", "said"), [
    (DataCfg(image_size=80), TINY_1, "is 80, but it must be a multiple of the 32 pixels of init 'm', such as 64"),
    (DataCfg(image_size=24), TINY_1, "such as 32"),
    (DataCfg(image_size=64, channels=3), TINY_1, "data.channels is 3, but it must be 1, as init 'm' has it"),
    (DataCfg(image_size=64), replace(TINY_1, autoencoder=ImportedCfg()), "one of diffusers, which cannot grow"),
])  # fmt: skip
def test_what_cannot_grow_is_refused(ours: DataCfg, theirs: Stage1Cfg, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        grown(replace(TINY_1, init="m", data=replace(ours, source=TINY_1.data.source)), theirs)


def test_a_training_grows_a_model_and_its_stage_2_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of stage 1 only the decoder learns; a training that goes on knows its network; stage 2 begins with the model's
    weights, on latents that it knows; an export of it draws masks of the new size."""
    begun, one, two = load_diffusion(model), tmp_path / "one", tmp_path / "two"
    args = ["animals-tiny", "--init", str(model), "--data.image-size", "64", "--train.run-dir", str(one), *QUICK]
    train_stage_1(args)
    told = capsys.readouterr().out
    assert "autoencoder.patch: 1 -> 2" in told
    assert "whose encoder stays as it is" in told
    module = load_autoencoder(one / "last.ckpt")
    assert module.complete
    assert module.shares_latents(begun.autoencoder)
    start = of_size(begun.autoencoder, 64)
    for part, alike in (("encoder", True), ("decoder", False)):
        own, then = (getattr(vae, part).state_dict() for vae in (module.vae, start.vae))
        assert all(torch.equal(value, then[name]) for name, value in own.items()) == alike
    train_stage_1([*args, "--train.max-steps", "3", "--train.resume", "auto"])
    assert "resuming from" in capsys.readouterr().out
    assert torch.load(one / "last.ckpt", weights_only=True)["global_step"] == 3

    runs = tmp_path / "runs"
    runs.mkdir()
    args = ["animals-tiny", "--init", str(model), "--data.image-size", "64", "--train.runs", str(runs), *QUICK]
    train_stage_1(["animals-tiny", "--data.image-size", "64", "--train.run-dir", str(runs / "stranger"), *QUICK])
    with pytest.raises(SystemExit):  # a newer stage 1 of these masks, with latents of its own, is none to go on with
        train_stage_2([*args, "--train.run-dir", str(two)])
    assert "or let it grow to a multiple of its size first: bash scripts/train_stage_1.sh" in capsys.readouterr().err
    args += ["--optim.lr", "1e-12", "--optim.muon-lr", "1e-12", "--train.quality", "0", "--train.run-dir", str(two)]
    one = one.rename(runs / "one")  # where the newest is looked for
    train_stage_2(args)
    assert f"autoencoder: {one / 'last.ckpt'}" in capsys.readouterr().out
    tuned = load_diffusion(two / "last.ckpt")
    for now, then in zip(tuned.net.parameters(), begun.average.parameters(), strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=1e-6)
    noise = torch.randn(2, *tuned.latent_shape)
    export(["--checkpoint", str(two / "last.ckpt"), "--dtype", "fp32"])
    drawn = load_diffusion(two / "model.safetensors").generate(["a cat"] * 2, noise)
    assert drawn.shape == (2, 1, 64, 64)
    export(["--checkpoint", str(two / "last.ckpt"), "--format", "pt2"])
    assert json.loads((two / "model.pt2.json").read_text())["rms_error"] < 3e-5
    assert "--init MODEL --data.image-size 64 --autoencoder" in (one / "report.html").read_text()


def test_a_training_that_goes_on_learns_what_it_began_to(model: Path, tmp_path: Path) -> None:
    """Whether the encoder is kept is no matter of what is asked for later; how masks are judged is."""
    run = tmp_path / "run"
    args = ["animals-tiny", "--data.image-size", "64", "--train.run-dir", str(run), *QUICK]
    train_stage_1([*args, "--init", str(model)])
    train_stage_1([*args, "--train.max-steps", "3", "--train.resume", "auto", "--autoencoder.loss.dice", "0.5"])
    cfg = load_autoencoder(run / "last.ckpt").cfg
    assert (cfg.init, cfg.autoencoder.patch) == (str(model), 2)
    assert isinstance(cfg.autoencoder.loss, MaskLossCfg)
    assert cfg.autoencoder.loss.dice == 0.5


def test_a_model_that_is_not_there_cannot_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_stage_1(["animals-tiny", "--init", str(tmp_path / "nope.ckpt"), *QUICK])
    assert "a last.ckpt of yours, or make one with: bash scripts/train_stage_1.sh PRESET" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_what_was_not_finished_cannot_grow(
    name: str, tiny_autoencoder: AutoencoderModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_autoencoder.complete = False  # its latents are not measured
    begun = saved(tiny_autoencoder, tmp_path / name)
    with pytest.raises(SystemExit):
        train_stage_1(["animals-tiny", "--data.image-size", "64", "--init", str(begun), *QUICK,
                       "--train.run-dir", str(tmp_path / "run")])  # fmt: skip
    assert "is of a stage-1 training that was not finished" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_encoder_of_sketches_sees_them_at_the_smaller_size(tiny_autoencoder: AutoencoderModule) -> None:
    cfg = replace(TINY_2, data=replace(TINY_2.data, image_size=64), backbone=replace(TINY_2.backbone, sketch=32),
                  sketch=SketchCfg(share=1.0))  # fmt: skip
    module = DiffusionModule(cfg, of_size(tiny_autoencoder, 64))
    x = torch.zeros(4, 1, 64, 64)
    x[:, :, 16:48, 16:48] = 1
    for cond in (module.condition({"image": x, "prompt": ["a cat"] * 4}), module.example_inputs(4)[-1]):
        assert cond.sketch is not None
        assert cond.sketch.shape == (4, 1, 32, 32)
    lines = np.zeros((200, 200), np.uint8)
    lines[50] = 1
    sketch = make_sketch(lines, "lines", module)
    assert sketch.shape == (1, 1, 32, 32)
    assert sketch[0, 0].any(1).sum() <= 2
    assert module.generate(["a cat"], torch.randn(1, *module.latent_shape), sketch=sketch).shape == (1, 1, 64, 64)
    drawn = sketches_of(x[:, 0], module.latent_shape[-1], 0)
    assert drawn.shape == (4, 1, 32, 32)
    assert enlarged_to(drawn, x[:, 0]).shape == (4, 64, 64)
    assert torch.equal(looked_at(x, 8), larger(x[..., ::2, ::2], 1))
    assert looked_at(x, 16) is x


def test_a_damaged_stage_1_that_is_newer_is_passed_over(
    tiny_diffusion: DiffusionModule, tmp_path: Path
) -> None:
    size = {"data": replace(TINY_2.data, image_size=64), "init": "model.ckpt"}
    cfg = replace(TINY_2, **size, train=replace(TINY_2.train, runs=str(tmp_path)))
    for name in ("right", "damaged"):
        (tmp_path / name).mkdir()
        saved(of_size(tiny_diffusion.autoencoder, 64), tmp_path / name / "last.ckpt")
        about = {"kind": "autoencoder", "data": "embedded:animals32 64px 1ch", "status": "complete"}
        (tmp_path / name / "run.json").write_text(json.dumps(about | {"checkpoint": "last.ckpt"}))
    (tmp_path / "damaged/last.ckpt").write_bytes(b"cut off")
    with pytest.warns(UserWarning, match="passed over: .*damaged"):
        assert checked_autoencoder(cfg, tiny_diffusion).cfg.data.image_size == 64


def test_a_model_that_knows_the_held_out_masks_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    for known in ("embedded:animals32 32px 1ch", "embedded:icons64 64px 1ch", "embedded:animals32"):
        warn_of_known(replace(TINY_2, init="m"), known)
    mnist = replace(TINY_2.data, source=MnistSource(), image_size=64)  # has masks of its own to test with
    warn_of_known(replace(TINY_2, init="m", data=mnist), data_fingerprint(replace(mnist, image_size=32)))
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"the same masks at another size \(64px\)"):
        warn_of_known(replace(TINY_2, init="m"), "embedded:animals32 64px 1ch")


def test_a_stage_1_of_other_latents_is_refused_beside_init(
    tiny_diffusion: DiffusionModule, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    stranger = AutoencoderModule(TINY_1, "embedded:animals32 32px 1ch")
    stranger.complete = True
    cfg = replace(TINY_2, init="model.ckpt", autoencoder=str(saved(stranger, tmp_path / "other.ckpt")))
    with pytest.raises(CheckpointError, match=r"has other latents than init 'model\.ckpt'"):
        checked_autoencoder(cfg, tiny_diffusion)
    own = saved(of_size(tiny_diffusion.autoencoder, 32), tmp_path / "own.ckpt")
    assert checked_autoencoder(replace(cfg, autoencoder=str(own)), tiny_diffusion).cfg.init == "model"
