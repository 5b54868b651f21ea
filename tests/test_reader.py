"""The reader of captions of geometry: what it learns, who learns from it, and where it stays."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_2
from data_fixtures import write_mask

from configs.checks import ConfigError
from configs.diffusion_cfg import ReaderCfg, SketchCfg, Stage2Cfg
from configs.sampler_cfg import DDPMCfg, ShortcutCfg
from configs.trainer_cfg import TrainerCfg
from diffusion import DiffusionModule, load_diffusion
from metrics.geometry import describe, numbers
from metrics.grammar import WORDS, Geometry, parse
from models.export import averaged
from models.reader import UNKNOWN, Reader, agreement, cross_entropy
from scripts.caption_masks import main as caption_masks
from scripts.mask_model import load_mask_model
from scripts.train_stage_1 import main as train_stage_1
from scripts.train_stage_2 import main as train_stage_2
from trainer import take_over

READING = replace(TINY_2, reader=ReaderCfg(weight=1.0, share=0.5, width=16))
PROMPTS = ["two small round blobs, left", "one large hollow blob, top", "many small long blobs, centre", "nothing"]


def test_words_become_numbers_and_numbers_words() -> None:
    found = numbers([parse("five medium uneven blobs, lower right"), Geometry("nothing"), parse("a cat")])
    assert found.tolist() == [[4, 1, 3, 8], [6, UNKNOWN, UNKNOWN, UNKNOWN], [UNKNOWN] * 4]
    words = [options[number] for options, number in zip(WORDS, found[0].tolist(), strict=True)]
    assert Geometry(*words).caption == "five medium uneven blobs, lower right"
    assert numbers([]).shape == (0, 4)


def test_the_error_is_the_cross_entropy_of_what_is_known() -> None:
    even = [torch.zeros(3, options) for options in (7, 3)]
    words = torch.tensor([[0, 2], [6, UNKNOWN], [UNKNOWN, UNKNOWN]])
    assert cross_entropy(even, words) == pytest.approx(math.log(7) + math.log(3))
    sure = [torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)]
    rows = torch.tensor([[1, UNKNOWN], [0, UNKNOWN]])
    assert cross_entropy(sure, rows) == pytest.approx((math.log1p(math.exp(2.0)) + math.log(2)) / 2)
    assert cross_entropy(even, torch.full((3, 2), UNKNOWN)) == 0


def test_agreement_is_of_the_rows_that_ask_for_something() -> None:
    asked = torch.tensor([[0, 1], [2, 1], [UNKNOWN, UNKNOWN], [6, UNKNOWN]])
    shown = torch.tensor([[0, 1], [2, 0], [1, 1], [6, UNKNOWN]])
    assert agreement(shown, asked) == pytest.approx(2 / 3)
    assert agreement(shown[2:3], asked[2:3]) == 0


def test_the_reader_learns_and_what_is_missed_teaches_the_latent_alone() -> None:
    torch.manual_seed(0)
    reader = Reader(2, [3, 2], 16, blocks=1)
    z = torch.randn(256, 2, 4, 4)
    words = torch.stack([z[:, 0].mean((1, 2)).mul(8).round().clamp(-1, 1).long() + 1, (z[:, 1, 0, 0] > 0).long()], 1)
    assert [logits.shape for logits in reader(z)] == [(256, 3), (256, 2)]
    first = float(reader.error(z, words).detach())
    assert first == pytest.approx(math.log(3) + math.log(2), abs=0.3)  # it knows nothing yet
    optimiser = torch.optim.AdamW(reader.parameters(), 1e-2)
    for _ in range(120):
        optimiser.zero_grad()
        reader.error(z, words).backward()
        optimiser.step()
    assert float(reader.error(z, words).detach()) < first / 3

    optimiser.zero_grad()
    wrong = torch.randn(64, 2, 4, 4).requires_grad_()
    asked = torch.stack([torch.arange(64) % 3, torch.arange(64) % 2], 1)
    missed = reader.missed(wrong, asked)
    assert missed.detach() == pytest.approx(float(reader.error(wrong, asked).detach()))
    missed.backward()
    assert all(weight.grad is None or not weight.grad.any() for weight in reader.parameters())
    assert wrong.grad is not None
    better = (wrong - 100 * wrong.grad).detach()  # the mean's gradient of one of 64 rows is small
    assert float(reader.error(better, asked).detach()) < float(missed.detach())


def test_the_words_reach_the_network_by_the_masks_that_it_draws(tiny_diffusion: DiffusionModule) -> None:
    torch.manual_seed(1)
    module = DiffusionModule(READING, tiny_diffusion.autoencoder)
    assert module.reader is not None
    for name, weight in module.net.named_parameters():  # whose last layer is 0 at first
        if not weight.any() and "sketch" not in name:
            torch.nn.init.normal_(weight, std=0.1)
    for name, weight in module.reader.named_parameters():
        if name.startswith("head"):
            torch.nn.init.normal_(weight, std=0.5)
    x1, cond = torch.randn(4, *module.latent_shape), module.encode_text(PROMPTS)
    z, shown = module.drawn(module.net, x1, cond)
    assert z.shape == (2, *module.latent_shape)  # half of the prompts
    with torch.no_grad():
        assert torch.equal(shown, numbers(describe(module.autoencoder.to_pixels(z) > 0)))

    torch.manual_seed(2)
    loss, parts = module.follow(module.reader, x1, cond, PROMPTS)
    assert set(parts) == {"reader", "missed", "as_asked"}
    assert loss.detach() == pytest.approx(float(parts["reader"] + parts["missed"]), rel=1e-5)
    loss.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in module.net.parameters())
    assert all(weight.grad is None for weight in module.autoencoder.parameters())


def test_the_reader_learns_alone_then_beside_the_flow_and_is_followed_where_jumps_are_learned(
    tiny_diffusion: DiffusionModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = replace(READING, reader=replace(READING.reader, begin=0.25), sampler=ShortcutCfg(begin=0.5, every=2))
    module = DiffusionModule(late, tiny_diffusion.autoencoder)
    assert module.reader is not None
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(module, "log_dict", lambda *args, **kwargs: None)
    batch = {"image": torch.rand(4, 1, 32, 32).round(), "prompt": PROMPTS}
    alone, beside, followed = {"reader"}, {"reader", "flow"}, {"reader", "flow", "missed", "as_asked"}
    for used, step, told in ((0.2, 0, alone), (0.25, 0, beside), (0.5, 1, beside), (0.5, 2, followed)):
        module.used = used
        at = type("AtStep", (), {"global_step": step})()
        module._trainer = at  # all that is asked of it
        module.zero_grad()
        output = module.training_step(batch, 0)
        assert {name for name in output if name != "loss" and not name.startswith("consistency")} == told
        output["loss"].backward()
        assert any(weight.grad is not None for weight in module.net.parameters()) == (used >= 0.25)
        assert all(weight.grad is not None for weight in module.reader.parameters())
    module._trainer = None
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [group["initial_lr"] for group in groups] == [module.cfg.optim.lr] * 2 + [module.cfg.reader.lr] * 2


def test_a_reader_is_trained_exported_taken_over_and_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for i in range(24):
        mask = np.zeros((32, 32), np.uint8)
        for _ in range(1 + i % 3):
            y, x = draw.integers(0, 26, 2)
            mask[y : y + 5, x : x + 5] = 1
        write_mask(tmp_path / f"masks/{i}.png", mask)
    caption_masks(["masks", "--image-size", "32"])
    common = [
        "--data.source.train", "masks", "--data.image-size", "32", "--data.batch-size", "8", "--train.previews",
        "False", "--train.accelerator", "cpu", "--train.precision", "fp32", "--train.channels-last", "off",
        "--train.val-every", "3", "--train.log-every", "1",
    ]  # fmt: skip
    train_stage_1(["folder", *common, "--train.max-steps", "1", "--train.run-dir", "one"])
    small = ["--backbone.width", "32", "--backbone.multipliers", "1", "2", "--train.quality", "0"]
    asks = ["--reader.weight", "1", "--reader.width", "16", "--sampler.begin", "0"]
    run = [*common, *small, "--autoencoder", "one/last.ckpt", "--train.run-dir", "two"]
    alone = ["folder", *run, *asks, "--reader.begin", "0.4"]
    train_stage_2([*alone, "--train.max-steps", "1"])
    with_reader = load_diffusion("two/last.ckpt")
    assert with_reader.reader is not None
    train_stage_2([*alone, "--train.max-steps", "3", "--train.resume", "auto"])  # a step more of it alone, then both
    both = load_diffusion("two/last.ckpt")
    assert both.reader is not None
    for old, new in ((with_reader.reader, both.reader), (with_reader.net, both.net)):
        assert any(not torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
    log = sorted(Path("two").rglob("metrics.csv"))[-1]  # each start writes one
    with log.open() as file:
        told = [row for row in csv.DictReader(file) if row.get("val/as_asked")]
    assert told
    assert 0 <= float(told[-1]["val/as_asked"]) <= 1
    assert Path("two/best.ckpt").is_file()

    first = load_diffusion("two/last.ckpt")
    assert first.reader is not None
    train_stage_2(["folder", *run, *asks, "--train.max-steps", "4", "--train.resume", "auto"])  # with its moments
    trained = load_diffusion("two/last.ckpt")
    assert trained.reader is not None
    moved = [not torch.equal(a, b) for a, b in zip(trained.reader.parameters(), first.reader.parameters(), strict=True)]
    assert any(moved)

    kept = averaged(trained.state_dict(), torch.float32)
    assert any(name.startswith("reader.") for name in kept)
    drawn = load_mask_model("two/last.ckpt")
    assert not any(name.startswith("reader.") for name in drawn.state_dict())
    noise = torch.randn(2, *trained.latent_shape)
    torch.testing.assert_close(drawn.generate(PROMPTS[:2], noise), trained.generate(PROMPTS[:2], noise))

    other = replace(trained.cfg, init="two/last.ckpt", autoencoder="auto", reader=ReaderCfg(weight=0.5))
    cfg, source = take_over(other)
    assert source is not None
    assert cfg.reader == ReaderCfg(weight=0.5, width=16)  # as wide as the one that is there
    assert "reader.width" in capsys.readouterr().out
    assert take_over(replace(other, reader=ReaderCfg()))[0].reader == ReaderCfg()
    again = DiffusionModule(cfg, source.autoencoder)
    again.begin_with(source)
    assert again.reader is not None
    assert all(torch.equal(a, b) for a, b in zip(again.reader.parameters(), trained.reader.parameters(), strict=True))


@pytest.mark.parametrize(("made", "said"), [
    (lambda: ReaderCfg(weight=-1.0), "reader.weight is -1"),
    (lambda: ReaderCfg(share=0.0), "reader.share is 0"),
    (lambda: ReaderCfg(begin=1.0), "reader.begin is 1"),
    (lambda: ReaderCfg(lr=0.0), "reader.lr is 0"),
    (lambda: ReaderCfg(width=0), "reader.width is 0"),
    (lambda: replace(READING, sampler=DDPMCfg()), "learns no jumps"),
    (lambda: replace(READING, sketch=SketchCfg(only=True)), "only the encoder of sketches"),
    (lambda: replace(READING, train=TrainerCfg(strategy="fsdp")), "take ddp"),
    (lambda: replace(READING, train=TrainerCfg(strategy="hybrid")), "take ddp"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(made: object, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        made()  # type: ignore[operator]  # the cases above are functions


def test_other_prompts_than_captions_of_geometry_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    with pytest.raises(SystemExit):
        train_stage_2(["animals", "--reader.weight", "1", "--init", "animals",
                       "--train.run-dir", str(tmp_path / "run")])
    told = " ".join(capsys.readouterr().err.split())
    assert "no captions of geometry" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shared", [("--train.devices", "2"), ("--train.strategy", "ddp")])
def test_a_reader_that_learns_alone_beside_other_processes_is_refused(
    shared: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    with pytest.raises(SystemExit):
        train_stage_2(["geometry", "--reader.weight", "1", "--reader.begin", "0.2", *shared,
                       "--train.accelerator", "cpu", "--train.run-dir", str(tmp_path / "run")])
    assert "reader.begin is 0.2, but only on one device" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_model_of_before_there_were_readers_is_read() -> None:
    plain = load_diffusion("models/shipped/animals.safetensors")
    assert plain.reader is None
    assert isinstance(plain.cfg, Stage2Cfg)
    assert plain.cfg.reader.weight == 0
