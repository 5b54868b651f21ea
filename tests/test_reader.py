"""The reader of captions of geometry: what it learns, what it corrects, and where it stays."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_2
from data_fixtures import write_mask

from configs.beginning import require_startable, taken_over
from configs.checks import ConfigError
from configs.diffusion_cfg import ReaderCfg, SketchCfg, Stage2Cfg
from configs.sampler_cfg import DDPMCfg, FlowCfg
from configs.trainer_cfg import TrainerCfg
from diffusion import DiffusionModule, load_diffusion
from metrics.geometry import adherence, describe, numbers
from metrics.grammar import WORDS, Geometry, parse
from models.export import averaged
from models.reader import CONTENT, PUSH, UNKNOWN, Reader, agreement, cross_entropies
from samplers.generates import Correction
from scripts.caption_masks import main as caption_masks
from scripts.evaluate import main as evaluate
from scripts.generate_masks import main as generate_masks
from scripts.mask_model import load_mask_model
from scripts.seeded import CORRECTIONS, DOUBT, Recipe, decided, draw, useful_corrections
from scripts.train_stage_1 import main as train_stage_1
from scripts.train_stage_2 import main as train_stage_2
from trainer import take_over

ALONE = replace(TINY_2, init="one.ckpt", reader=ReaderCfg(width=16, only=True))
PROMPTS = ["two small round blobs, left", "one large hollow blob, top", "many small long blobs, centre", "nothing"]


def test_words_become_numbers_and_numbers_words() -> None:
    found = numbers([parse("five medium uneven blobs, lower right"), Geometry("nothing"), parse("a cat")])
    assert found.tolist() == [[4, 1, 3, 8], [6, UNKNOWN, UNKNOWN, UNKNOWN], [UNKNOWN] * 4]
    words = [options[number] for options, number in zip(WORDS, found[0].tolist(), strict=True)]
    assert Geometry(*words).caption == "five medium uneven blobs, lower right"
    assert numbers([]).shape == (0, 4)


def test_the_errors_are_cross_entropies_of_what_is_known() -> None:
    even = [torch.zeros(3, options) for options in (7, 3)]
    words = torch.tensor([[0, 2], [6, UNKNOWN], [UNKNOWN, UNKNOWN]])
    assert cross_entropies(even, words).tolist() == pytest.approx([2 * math.log(7), math.log(3)])
    sure = [torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)]
    rows = torch.tensor([[1, UNKNOWN], [0, UNKNOWN]])
    assert cross_entropies(sure, rows).tolist() == pytest.approx([math.log1p(math.exp(2.0)) + math.log(2), 0])
    assert cross_entropies(even, torch.full((3, 2), UNKNOWN)).tolist() == [0, 0]


def test_agreement_is_of_the_rows_that_ask_for_something() -> None:
    asked = torch.tensor([[0, 1], [2, 1], [UNKNOWN, UNKNOWN], [6, UNKNOWN]])
    shown = torch.tensor([[0, 1], [2, 0], [1, 1], [6, UNKNOWN]])
    assert agreement(shown, asked) == pytest.approx(2 / 3)
    assert agreement(shown[2:3], asked[2:3]) == 0


@pytest.mark.parametrize("side", [4, 16])
def test_the_reader_learns_to_read_and_corrects_what_it_reads(side: int) -> None:
    torch.manual_seed(0)
    reader = Reader((2, side, side), [3, 2], 16, blocks=1)

    def sample(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.randn(rows, 2, 1, 1) + 0.3 * torch.randn(rows, 2, side, side)
        mean = z.mean((2, 3))
        return z, torch.stack([(2 * mean[:, 0]).round().clamp(-1, 1).long() + 1, (mean[:, 1] > 0).long()], 1)

    z, words = sample(256)
    assert [logits.shape for logits in reader(z)] == [(256, 3), (256, 2)]
    first = float(reader.error(z, words).detach())
    assert first == pytest.approx(math.log(3) + math.log(2), abs=0.3)  # it knows nothing yet
    optimiser = torch.optim.AdamW(reader.parameters(), 1e-2)
    for _ in range(120):
        z, words = sample(64)
        optimiser.zero_grad()
        reader.error(z, words).backward()
        optimiser.step()
    assert float(reader.error(z, words).detach()) < first / 3

    wrong, _ = sample(32)
    asked = torch.stack([torch.arange(32) % 3, torch.arange(32) % 2], 1)
    asked[5] = asked[7, 0] = UNKNOWN
    with torch.inference_mode():
        better = reader.corrected(wrong + 0, asked + 0, 20)  # as tensors of inference mode
    assert float(reader.error(better, asked).detach()) < 0.5 * float(reader.error(wrong, asked).detach())
    assert torch.equal(better[5], wrong[5])  # nothing is asked of it
    assert not torch.equal(better[7], wrong[7])
    assert ((better - wrong).square().mean((1, 2, 3)).sqrt() <= 20 * PUSH).all()
    assert not better.requires_grad
    assert all(weight.requires_grad for weight in reader.parameters())
    torch.testing.assert_close(reader.corrected(wrong[3:4], asked[3:4], 20), better[3:4], atol=1e-4, rtol=0)
    assert torch.equal(reader.corrected(wrong, asked, 0), wrong)


def test_a_step_of_a_correction_has_the_length_that_the_gradient_deserves() -> None:
    class Sum(Reader):
        def forward(self, z: torch.Tensor) -> list[torch.Tensor]:
            first = z.mean((1, 2, 3))
            return [torch.stack([first, -first], 1)]

    reader, z = Sum((1, 4, 4), [2], 8), torch.zeros(1, 1, 4, 4)
    # The error is log(1 + exp(-2m)) of the mean m, its gradient -2 sigmoid(-2m) / 16 in each number: 1/16 at 0.
    one = reader.corrected(z, torch.tensor([[0]]), 1)
    torch.testing.assert_close(one, torch.full_like(z, PUSH / 16 / (1 / 16 + CONTENT)))
    torch.testing.assert_close(reader.corrected(z, torch.tensor([[1]]), 1), -one)


class Ramp(Reader):
    """Reads word 1 where the mean is high, so that each step towards it adds a like amount."""

    def forward(self, z: torch.Tensor) -> list[torch.Tensor]:
        mean = z.mean((1, 2, 3))
        return [torch.stack([-mean, mean], 1), torch.stack([-mean, mean], 1)]


def test_a_row_is_corrected_until_it_shows_what_is_asked_for_and_no_further() -> None:
    reader, steps = Ramp((1, 4, 4), [2, 2], 8), 6
    z = torch.tensor([0.0, -0.5, 0.0, -9.0, 5.0, 0.0])[:, None, None, None].expand(-1, 1, 4, 4).clone()
    asked = torch.tensor([[1, 1], [1, 1], [UNKNOWN, UNKNOWN], [1, 1], [1, 1], [1, UNKNOWN]])
    path = [z]
    for _ in range(steps):
        path.append(reader.pushed(path[-1], asked))
    looked: list[list[int]] = []

    def shown(rows: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The first word is right above 0.3, the second above 0.5: rows cross one after the other."""
        looked.append(rows.tolist())
        mean = z.mean((1, 2, 3))
        return torch.stack([mean > 0.3, mean > 0.5], 1).long()

    with torch.inference_mode():
        ends = reader.corrected(z, asked, steps, shown)
    means = torch.stack(path).mean((2, 3, 4))                                   # [steps+1,B]
    for row, needed in ((0, 0.5), (1, 0.5), (5, 0.3)):
        first = int((means[:, row] > needed).nonzero()[0])
        assert first > 0
        torch.testing.assert_close(ends[row], path[first][row])                # the first that was right
        assert [row in rows for rows in looked] == [step <= first for step in range(len(looked))]
    assert torch.equal(ends[2], z[2])                                          # nothing is asked of it
    assert not any(2 in rows for rows in looked)
    assert torch.equal(ends[3], z[3])                                          # never better than as it was drawn
    assert sum(3 in rows for rows in looked) == steps + 1
    assert torch.equal(ends[4], z[4])                                          # right as it was drawn
    assert sum(4 in rows for rows in looked) == 1


def test_a_row_that_is_never_right_ends_as_it_was_right_in_most() -> None:
    reader = Ramp((1, 4, 4), [2, 2], 8)
    z, asked = torch.zeros(1, 1, 4, 4), torch.ones(1, 2, dtype=torch.long)
    steps = [torch.tensor([words]) for words in ([0, 0], [1, 0], [0, 1], [0, 0])]
    seen: list[torch.Tensor] = []

    def shown(_: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        seen.append(z.clone())
        return steps[len(seen) - 1]

    assert torch.equal(reader.corrected(z, asked, 3, shown), seen[1])  # the first of the two that have one word right
    assert len(seen) == 4


@pytest.mark.slow
def test_a_corrected_mask_is_the_same_in_any_batch() -> None:
    model, device = load_mask_model("models/shipped/geometry.safetensors"), torch.device("cpu")
    sizes, places = ("small", "medium", "large"), ("left", "top", "centre", "lower right")
    prompts = [f"{n} {size} round blobs, {place}" for n in ("two", "three") for size in sizes for place in places]
    way, seeds = Recipe(model.sampler, 1, corrections=CORRECTIONS), list(range(len(prompts)))
    together = decided(model, prompts, seeds, way, device)
    for rows in (slice(0, 1), slice(5, 6), slice(3, 10), slice(14, 24)):
        for p, other in zip(decided(model, prompts[rows], seeds[rows], way, device), together[rows], strict=True):
            assert torch.equal(p > 0.5, other > 0.5)
    right = [adherence((torch.stack(masks) > 0.5)[:, 0], prompts)["all_right"] for masks in (
        together, list(draw(model, prompts, seeds, replace(way, corrections=0), device)),
    )]  # fmt: skip
    assert right[0] >= 0.75 > 0.6 > right[1]  # 24 prompts; docs/results.md has 1,000


def test_only_the_reader_learns_first_from_masks_then_from_what_is_drawn_and_corrected(
    tiny_diffusion: DiffusionModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = DiffusionModule(replace(ALONE, reader=replace(ALONE.reader, begin=0.25)), tiny_diffusion.autoencoder)
    assert module.reader is not None
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(module, "log_dict", lambda *args, **kwargs: None)
    batch = {"image": torch.rand(4, 1, 32, 32).round(), "prompt": PROMPTS}
    module._trainer = type("AtStep", (), {"global_step": 0})()  # all that is asked of it
    for used, told in ((0.2, {"reader"}), (0.25, {"reader", "as_asked"})):
        module.used = used
        module.zero_grad()
        output = module.training_step(batch, 0)
        assert set(output) == {"loss"} | told
        output["loss"].backward()
        assert all(weight.grad is not None for weight in module.reader.parameters())
    assert not any(weight.requires_grad for name, weight in module.named_parameters() if not name.startswith("reader."))
    module._trainer = None
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(module.reader.parameters()))
    assert {module.corrections() for _ in range(200)} == set(range(module.cfg.reader.steps + 1))


def test_the_words_that_drawn_masks_teach_are_true_of_them(tiny_diffusion: DiffusionModule) -> None:
    module = DiffusionModule(ALONE, tiny_diffusion.autoencoder)
    assert module.reader is not None
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Spy(Reader):
        def error(self, z: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            seen.append((z, words))
            return super().error(z, words)

    spy = Spy(module.latent_shape, module.reader.words, 16)
    x1 = torch.randn(4, *module.latent_shape)
    _, parts = module.read(spy, x1, PROMPTS, 2)
    z, words = seen.pop()
    assert torch.equal(z[:2], x1[:2])
    assert len(z) == 2 + 4
    asked = module.asked(PROMPTS)
    assert torch.equal(words[:2], asked[:2])
    assert torch.equal(words[2:], numbers(describe(module.autoencoder.to_pixels(z[2:]) > 0)))
    assert parts["as_asked"] == agreement(words[2:], asked)
    module.read(spy, x1, PROMPTS, None)
    assert torch.equal(seen[0][0], x1)
    assert torch.equal(seen[0][1], asked)


@pytest.fixture
def captioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with captions of geometry, two trained stages in one and two, and settings of a training on it."""
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    draw_from = np.random.default_rng(0)
    for i in range(40):
        mask = np.zeros((32, 32), np.uint8)
        for _ in range(1 + i % 3):
            y, x = draw_from.integers(0, 26, 2)
            mask[y : y + 5, x : x + 5] = 1
        write_mask(tmp_path / f"masks/{i}.png", mask)
    caption_masks(["masks", "--image-size", "32"])
    common = [
        "--data.source.train", "masks", "--data.image-size", "32", "--data.batch-size", "8", "--train.previews",
        "False", "--train.accelerator", "cpu", "--train.precision", "fp32", "--train.channels-last", "off",
        "--train.val-every", "2", "--train.log-every", "1", "--train.quality", "0",
    ]  # fmt: skip
    train_stage_1(["folder", *[x for x in common if x not in ("--train.quality", "0")], "--train.max-steps", "1",
                   "--train.run-dir", "one"])  # fmt: skip
    train_stage_2(["folder", *common, "--backbone.width", "32", "--backbone.multipliers", "1", "2", "--sampler.begin",
                   "0", "--autoencoder", "one/last.ckpt", "--train.max-steps", "2", "--train.run-dir", "two"])
    return common


def test_a_reader_is_trained_alone_resumed_exported_carried_along_and_corrects(
    captioned: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["folder", *captioned, "--init", "two/last.ckpt", "--reader.width", "16", "--reader.only", "True",
           "--train.run-dir", "three", "--train.channels-last", "auto"]  # fmt: skip
    train_stage_2([*run, "--train.max-steps", "1"])
    first, plain = load_diffusion("three/last.ckpt"), load_diffusion("two/last.ckpt")
    train_stage_2([*run, "--train.max-steps", "4", "--train.resume", "auto"])
    trained = load_diffusion("three/last.ckpt")
    assert first.reader is not None
    assert trained.reader is not None
    pairs = zip(first.reader.parameters(), trained.reader.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    for name, value in plain.average.state_dict().items():  # the network is what it was
        for twin in (trained.average, trained.net, trained.teacher):
            assert torch.equal(twin.state_dict()[name], value)
    assert trained.cfg.sampler == plain.cfg.sampler
    log = sorted(Path("three").rglob("metrics.csv"))[-1]  # each start writes one
    with log.open() as file:
        told = [row for row in csv.DictReader(file) if row.get("val/as_asked")]
    assert told
    assert 0 <= float(told[-1]["val/as_asked"]) <= 1
    assert Path("three/best.ckpt").is_file()

    kept = averaged(trained.state_dict(), torch.float32)
    assert any(name.startswith("reader.") for name in kept)
    model = load_mask_model("three/last.ckpt")
    for weight in model.reader.head.parameters():  # so that it has something to say
        torch.nn.init.normal_(weight, std=0.5)
    device, seeds = torch.device("cpu"), range(4)
    asked = useful_corrections(None, PROMPTS, model)
    assert asked == CORRECTIONS
    way = Recipe(model.sampler, 1, corrections=asked)
    p = draw(model, PROMPTS, seeds, way, device)
    as_drawn = draw(model, PROMPTS, seeds, replace(way, corrections=0), device)
    assert not torch.equal(p, as_drawn)
    noise = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
    torch.testing.assert_close(as_drawn, model.generate(PROMPTS, noise, steps=1))
    words = numbers([parse(prompt) for prompt in PROMPTS])
    how = Correction(words, asked, lambda rows, p: numbers(describe(p > 0.5)))
    torch.testing.assert_close(p, model.generate(PROMPTS, noise, steps=1, correct=how))
    alone = [draw(model, PROMPTS[i : i + 1], [i], way, device)[0] for i in seeds]
    assert (torch.stack(alone) - p).abs().max() < DOUBT / 2  # no mask depends on its batch
    draw(model, PROMPTS, seeds, replace(way, bf16=True), device)  # also where weights are converted

    other = replace(trained.cfg, init="three/last.ckpt", autoencoder="auto", reader=ReaderCfg())
    cfg, source = take_over(other)
    assert source is not None
    assert cfg.reader == ReaderCfg(width=16)  # carried along, and not trained
    again = DiffusionModule(cfg, source.autoencoder)
    again.begin_with(source)
    assert again.reader is not None
    assert all(torch.equal(a, b) for a, b in zip(again.reader.parameters(), trained.reader.parameters(), strict=True))
    assert not any(weight.requires_grad for weight in again.reader.parameters())
    assert all(weight.requires_grad for weight in again.net.parameters())

    capsys.readouterr()
    prompt = ["--prompt", PROMPTS[0], "--num", "2", "--steps", "1", "--tries", "1"]
    generate_masks(["--checkpoint", "three/last.ckpt", *prompt, "--out", "drawn"])
    generate_masks(["--checkpoint", "three/last.ckpt", *prompt, "--out", "bare", "--corrections", "0"])
    said = [json.loads((Path(folder) / "manifest.jsonl").read_text().splitlines()[0]) for folder in ("drawn", "bare")]
    assert [about.get("corrections") for about in said] == [CORRECTIONS, None]
    judged = ["--checkpoint", "three/last.ckpt", "--num", "4", "--steps", "1", "--search", "0"]
    evaluate([*judged, "--out", "with.json"])
    evaluate([*judged, "--out", "without.json", "--corrections", "0"])
    told = [json.loads(Path(f"{name}.json").read_text())["corrections"] for name in ("with", "without")]
    assert told == [CORRECTIONS, 0]
    for model_path, wanted in (("two/last.ckpt", "has no reader to correct by"), ("three/last.ckpt", "only corrected")):
        with pytest.raises(SystemExit):
            generate_masks(["--checkpoint", model_path, "--prompt", "a cat" if "three" in model_path else PROMPTS[0],
                            "--corrections", "5", "--out", "none"])  # fmt: skip
        assert wanted in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("made", "said"), [
    (lambda: ReaderCfg(width=-1), "reader.width is -1"),
    (lambda: ReaderCfg(begin=1.0), "reader.begin is 1"),
    (lambda: ReaderCfg(steps=0), "reader.steps is 0"),
    (lambda: replace(ALONE, sampler=DDPMCfg()), "learns no jumps"),
    (lambda: replace(ALONE, sketch=SketchCfg(only=True)), "only the encoder of sketches"),
    (lambda: replace(ALONE, train=TrainerCfg(strategy="fsdp")), "take ddp"),
    (lambda: replace(ALONE, train=TrainerCfg(strategy="hybrid")), "take ddp"),
    (lambda: require_startable(replace(ALONE, init="")), "name one with --init"),
    (lambda: require_startable(replace(TINY_2, reader=ReaderCfg(width=16))), "is trained after it"),
    (lambda: taken_over(replace(ALONE, reader=ReaderCfg(only=True)), TINY_2), "to begin one"),
    (lambda: taken_over(replace(ALONE, reader=ReaderCfg(width=16)), TINY_2), "has no reader"),
    (lambda: taken_over(ALONE, replace(TINY_2, reader=ReaderCfg(width=32))), "ask for as many"),
    (lambda: taken_over(ALONE, replace(TINY_2, sampler=FlowCfg())), "learns no jumps"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(made: object, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        made()  # type: ignore[operator]  # the cases above are functions


def test_other_prompts_than_captions_of_geometry_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    with pytest.raises(SystemExit):
        train_stage_2(["animals", "--reader.width", "64", "--reader.only", "True", "--init", "animals",
                       "--train.run-dir", str(tmp_path / "run")])
    told = " ".join(capsys.readouterr().err.split())
    assert "no captions of geometry" in told
    assert not (tmp_path / "run").exists()


def test_a_model_of_before_there_were_readers_is_read() -> None:
    plain = load_diffusion("models/shipped/animals.safetensors")
    assert plain.reader is None
    assert isinstance(plain.cfg, Stage2Cfg)
    assert plain.cfg.reader == ReaderCfg()
