"""Sketches as conditions: the encoder, what training makes of its masks, and the command."""

import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from generation import cfg_for, files, rows
from PIL import Image
from torch import Tensor, nn

from configs.backbone_cfg import BackboneCfg, DiTCfg, UNetCfg
from configs.checks import ConfigError
from configs.diffusion_cfg import SketchCfg, Stage2Cfg
from configs.evaluate_cfg import EvaluateCfg
from configs.presets import ICONS, RGB, STAGE_2
from configs.shipped import checkpoint_path
from data.sources import load_splits
from diffusion import DiffusionModule, load_diffusion
from metrics.reconstruction import iou
from models import build_backbone
from models.backbone import Backbone
from models.sketch import outline, rough_sketch
from models.text import Condition
from scripts.edits import make_sketch
from scripts.evaluate import sketch_grid, sketches_of
from scripts.generate_masks import generate_to_folder, planned
from scripts.mask_model import load_mask_model
from scripts.pictures import mask_grid
from scripts.seeded import Recipe, draw
from scripts.train_stage_2 import main as train_stage_2
from trainer import take_over

NETWORKS = [
    UNetCfg(width=32, multipliers=(1, 2), blocks=1, attention_sizes=(4,), sketch=32),
    UNetCfg(width=32, multipliers=(1,), blocks=1, attention_sizes=(8,), resample="conv", sketch=32),
    DiTCfg(width=32, depth=2, sketch=32),
]


def network(cfg: BackboneCfg, trained: bool = True) -> nn.Module:
    torch.manual_seed(0)
    net = build_backbone(cfg, (4, 8, 8), 16, 16).eval()
    for name, weight in net.named_parameters():
        if trained or not name.startswith("sketch."):
            nn.init.normal_(weight, std=0.1)
    return net


def question(rows: int) -> tuple[Tensor, Tensor, Tensor, Condition]:
    torch.manual_seed(rows)
    cond = Condition(torch.randn(rows, 3, 16), torch.ones(rows, 3, dtype=torch.bool))
    return torch.randn(rows, 4, 8, 8), torch.rand(rows), torch.rand(rows), cond


def sketches(rows: int, side: int = 32) -> Tensor:
    return (torch.rand(rows, 1, side, side, generator=torch.Generator().manual_seed(rows)) < 0.3).float()


@pytest.mark.parametrize("cfg", NETWORKS, ids=lambda cfg: f"{type(cfg).__name__}-{cfg.width}")
def test_an_encoder_says_nothing_before_it_is_trained_and_to_rows_without_a_sketch(cfg: BackboneCfg) -> None:
    x, t, dt, cond = question(3)
    drawn = sketches(3) * torch.tensor([1.0, 0.0, 1.0])[:, None, None, None]
    for trained in (False, True):
        net = network(cfg, trained)
        without, beside = net(x, t, dt, cond), net(x, t, dt, replace(cond, sketch=drawn))
        same = [torch.equal(a, b) for a, b in zip(without, beside, strict=True)]
        assert same == ([False, True, False] if trained else [True] * 3)


@pytest.mark.parametrize("cfg", NETWORKS, ids=lambda cfg: f"{type(cfg).__name__}-{cfg.width}")
def test_a_row_heeds_its_own_sketch_alone_and_every_weight_learns(cfg: BackboneCfg) -> None:
    net, (x, t, dt, cond) = network(cfg), question(3)
    cond = replace(cond, sketch=sketches(3))
    together = net(x, t, dt, cond)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], dt[i : i + 1], cond[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    together.square().mean().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_a_sketch_is_read_at_any_size() -> None:
    net, (x, t, dt, cond) = network(NETWORKS[0]), question(2)
    small = sketches(2)
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        one, other = (net(x, t, dt, replace(cond, sketch=sketch)) for sketch in (small, large))
    torch.testing.assert_close(one, other)


def test_conditions_carry_their_sketches_through_all_that_is_done_to_them() -> None:
    cond = replace(question(3)[3], sketch=sketches(3))
    assert cond.sketch is not None
    plain = question(2)[3]
    for changed, expected in (
        (cond.drop(torch.tensor([True, False, True])), cond.sketch),
        (cond.guided(2.0), cond.sketch),
        (cond.to(torch.device("cpu")), cond.sketch),
        (cond[1:], cond.sketch[1:]),
        (cond[torch.tensor([2, 0])], cond.sketch[[2, 0]]),
        (cond.repeat(2), cond.sketch.repeat(2, 1, 1, 1)),
        (cond.concat(plain), torch.cat([cond.sketch, torch.zeros(2, 1, 32, 32)])),
        (plain.concat(cond), torch.cat([torch.zeros(2, 1, 32, 32), cond.sketch])),
    ):
        assert changed.sketch is not None
        assert torch.equal(changed.sketch, expected)
    assert plain.concat(plain).sketch is None


def test_rows_with_sketches_are_like_no_others() -> None:
    cond = Condition(torch.ones(4, 2, 8), torch.ones(4, 2, dtype=torch.bool))
    assert cond.same().all()
    drawn = sketches(4) * torch.tensor([0.0, 1.0, 1.0, 0.0])[:, None, None, None]
    assert replace(cond, sketch=drawn).same().int().tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize("reach", [1, 2])
def test_an_outline_is_what_lies_at_the_edge(reach: int) -> None:
    masks = torch.zeros(2, 1, 16, 16)
    masks[0, 0, 4:12, 3:13] = 1
    masks[1] = 1  # fills the frame
    expected = masks.clone()
    expected[0, 0, 4 + reach : 12 - reach, 3 + reach : 13 - reach] = 0
    expected[1, 0, reach : 16 - reach, reach : 16 - reach] = 0
    assert torch.equal(outline(masks, reach), expected)


def test_made_sketches_are_near_their_masks_and_differ_among_each_other() -> None:
    icons = torch.from_numpy(load_splits(replace(ICONS, limit=400))[0].images[:256])[:, None].float()
    torch.manual_seed(0)
    made = rough_sketch(icons)
    assert made.shape == icons.shape
    assert set(made.unique().tolist()) == {0.0, 1.0}
    near = nn.functional.max_pool2d(icons, 15, stride=1, padding=7)  # an unsteady hand is off by some pixels
    assert (made * near).sum() > 0.95 * made.sum()
    assert not torch.equal(made, icons)
    assert 0.3 < made.sum() / icons.sum() < 1  # half of them are outlines
    torch.manual_seed(0)
    assert torch.equal(rough_sketch(icons), made)
    again = rough_sketch(icons)
    assert ((again != made).flatten(1).any(1)).float().mean() > 0.9
    assert rough_sketch(icons[:1]).shape == (1, 1, 64, 64)


def test_any_row_of_a_batch_may_lose_its_details() -> None:
    """One-step jumps learn from the first rows of a batch, so these must not all be sketched in detail."""
    torch.manual_seed(0)
    dots = torch.zeros(400, 1, 64, 64)
    dots[:, :, 30:32, 30:32] = 1  # too small for the coarser half of the degrees of detail
    lost = ~rough_sketch(dots).flatten(1).any(1)
    for part in lost.split(100):
        assert 0.2 < part.float().mean() < 0.8
    for few in (1, 3):  # fewer than there are degrees
        lost = torch.cat([~rough_sketch(dots[:few]).flatten(1).any(1) for _ in range(60)])
        assert 0.2 < lost.float().mean() < 0.8


@pytest.mark.parametrize(("made", "said"), [
    (lambda: UNetCfg(sketch=20), "backbone.sketch is 20, but it must be 0 or a multiple of 32"),
    (lambda: SketchCfg(share=1.5), "sketch.share is 1.5"),
    (lambda: Stage2Cfg(data=RGB, backbone=UNetCfg(sketch=32)), "made of masks"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(made: object, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        made()  # type: ignore[operator]  # the cases above are functions


def test_a_network_without_places_for_sketches_refuses_them() -> None:
    with pytest.raises(ConfigError, match="reads no sketches"):
        Backbone(UNetCfg(sketch=32), 16, 16, 16)


SHORT = [
    "--data.limit", "16", "--data.batch-size", "8", "--train.max-steps", "3", "--train.previews", "False",
    "--train.accelerator", "cpu", "--train.precision", "fp32", "--train.quality", "0", "--sampler.begin", "0",
    "--sampler.nodes", "2", "--train.val-every", "100", "--train.channels-last", "off", "--data.val-fraction", "0.002",
]  # fmt: skip


@pytest.mark.slow(longest=True)
def test_an_encoder_trained_alone_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    run = tmp_path / "run"
    train_stage_2([
        "animals", "--init", "animals", "--backbone.sketch", "32", "--sketch.only", "True", "--optim.lr", "0.05",
        "--optim.warmup-steps", "0", *SHORT, "--train.quality", "8", "--train.run-dir", str(run),
        "--train.runs", str(tmp_path),
    ])  # fmt: skip
    logged = "".join(path.read_text() for path in run.rglob("metrics.csv"))
    assert "val/loss" in logged  # which chooses best.ckpt: what is drawn without a sketch is always the same
    assert "frechet" not in logged
    tuned, start = load_diffusion(run / "last.ckpt"), load_diffusion("models/shipped/animals.safetensors")
    assert tuned.cfg.backbone == replace(start.cfg.backbone, sketch=32)
    own = {name for name in tuned.average.state_dict() if name.startswith("sketch.")}
    before = start.average.state_dict()
    for twin in (tuned.net, tuned.average, tuned.teacher):
        now = twin.state_dict()
        assert now.keys() - before.keys() == own
        assert all(torch.equal(now[name], before[name]) for name in before)
    assert tuned.average.sketch.last[0].weight.any()  # it has learned something
    noise = torch.randn(3, *tuned.latent_shape, generator=torch.Generator().manual_seed(0))
    prompts = ["a cat", "a horse", ""]
    assert torch.equal(tuned.generate(prompts, noise), start.generate(prompts, noise))
    assert not torch.equal(tuned.generate(prompts, noise, sketch=sketches(3)), start.generate(prompts, noise))
    cfg, source = take_over(replace(STAGE_2["animals"](), init=str(run / "last.ckpt")))  # which asks for no encoder
    assert source is not None
    plain = DiffusionModule(cfg, source.autoencoder)
    plain.begin_with(source)
    assert plain.net.sketch is None
    assert all(torch.equal(plain.net.state_dict()[name], before[name]) for name in before)
    # The same goes on from the same place, and an encoder that is there is trained on.
    train_stage_2([
        "animals", "--init", "animals", "--backbone.sketch", "32", "--sketch.only", "True", "--optim.lr", "0.05",
        "--optim.warmup-steps", "0", *SHORT, "--train.max-steps", "4", "--train.run-dir", str(run),
        "--train.runs", str(tmp_path), "--train.resume", "auto",
    ])  # fmt: skip
    assert load_diffusion(run / "last.ckpt").average.sketch is not None


@pytest.mark.parametrize(("args", "said"), [
    (["--init", "animals", "--sketch.only", "True"], "there is no encoder of sketches to train"),
    (["--sketch.only", "True"], "name one with --init"),
    (["--init", "icons", "--backbone.sketch", "32"], "is of 64 channels: ask for as many"),
])
def test_an_encoder_that_cannot_be_trained_is_refused(
    args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train_stage_2(["animals", *args, *SHORT, "--train.run-dir", str(tmp_path / "run")])
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


@pytest.fixture
def sketching(tiny_diffusion: DiffusionModule) -> DiffusionModule:
    """A model with an encoder of sketches that is not trained either, but does something."""
    cfg = replace(tiny_diffusion.cfg, backbone=replace(tiny_diffusion.cfg.backbone, sketch=32))
    torch.manual_seed(5)
    module = DiffusionModule(cfg, tiny_diffusion.autoencoder).eval()
    for name, weight in module.average.named_parameters():
        if not weight.any() or name.startswith("sketch.last"):
            torch.nn.init.normal_(weight, std=0.3)
    return module


def picture(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels.astype(np.uint8) * 255).save(path)
    return str(path)


def test_the_command_follows_a_sketch_and_says_so(sketching: DiffusionModule, checkpoint: str, tmp_path: Path) -> None:
    lines = np.zeros((256, 256), bool)
    lines[60:200, 80:83] = lines[60:63, 80:200] = True
    drawn = {}
    for name, sketch in (
        ("none", ""), ("bright", picture(tmp_path / "a.png", lines)), ("dark", picture(tmp_path / "b.png", ~lines)),
    ):  # fmt: skip
        cfg = cfg_for(checkpoint, tmp_path / name, prompt=("a cat",), num=2, steps=(2,), sketch=sketch)
        out = generate_to_folder(sketching, cfg)
        drawn[name] = [np.asarray(Image.open(out / row["file_name"])) for row in rows(out)]
        assert all(("sketch" in row) == bool(sketch) for row in rows(out))
    assert all((a == b).all() for a, b in zip(drawn["bright"], drawn["dark"], strict=True))
    assert any((a != b).any() for a, b in zip(drawn["bright"], drawn["none"], strict=True))


def test_a_sketch_goes_with_guidance_negative_prompts_and_ways(
    sketching: DiffusionModule, checkpoint: str, tmp_path: Path
) -> None:
    lines = np.zeros((32, 32), bool)
    lines[5:20, 9] = True
    sketch = picture(tmp_path / "a.png", lines)
    for name, further in {
        "guided": {"guidance": 2.0}, "negative": {"guidance": 2.0, "negative_prompt": "a dog"},
        "way": {"to_prompt": "a horse"}, "seeds": {"to_seed": 7}, "flow": {"sampler": "flow", "steps": (2,)},
    }.items():  # fmt: skip
        cfg = cfg_for(checkpoint, tmp_path / name, prompt=("a cat",), num=3, sketch=sketch, **further)
        heeded = files(generate_to_folder(sketching, cfg))
        plain = generate_to_folder(sketching, replace(cfg, sketch="", out=str(tmp_path / f"{name}-plain")))
        drawn, without = ([np.asarray(Image.open(BytesIO(x))) for x in y.values()] for y in (heeded, files(plain)))
        assert len(drawn) == len(without) == 3
        assert all((a != b).any() for a, b in zip(drawn, without, strict=True)), name


@pytest.mark.parametrize("side", [33, 48, 64, 96, 125, 250, 350, 1000])
def test_thin_lines_of_a_large_drawing_are_not_lost(side: int, sketching: DiffusionModule) -> None:
    for column in range(1, side - 1, 1 + side // 60):
        lines = np.zeros((7 * side // 10, side), np.uint8)
        lines[side // 10 : 6 * side // 10, column] = 1
        sketch = make_sketch(lines, "lines", sketching)
        assert sketch.shape == (1, 1, 32, 32)
        assert sketch[0, 0].any(1).sum() >= 15, column  # half of the frame's height, unbroken
        assert sketch[0, 0].any(0).sum() <= 3, column


def test_thin_lines_along_a_flat_drawing_are_not_lost(sketching: DiffusionModule) -> None:
    for height, width in ((13, 96), (40, 333), (7, 64)):
        for row in range(1, height - 1):
            lines = np.zeros((height, width), np.uint8)
            lines[row, 2 : width - 2] = 1
            for drawn in (lines, lines.T):
                assert make_sketch(drawn, "lines", sketching).sum() >= 28, (height, width, row)


def test_a_sketch_of_which_nothing_is_left_is_refused(sketching: DiffusionModule) -> None:
    speck = np.zeros((1000, 1000), np.uint8)
    speck[31, 31] = 1  # at the corner of four cells, a quarter of each when it is thickened
    with pytest.raises(ConfigError, match="nothing of it is left at 32x32 pixels: draw it larger"):
        make_sketch(speck, "speck", sketching)


def test_sketches_that_cannot_be_followed_are_refused(
    sketching: DiffusionModule, tiny_diffusion: DiffusionModule, checkpoint: str, tmp_path: Path
) -> None:
    empty = picture(tmp_path / "empty.png", np.zeros((32, 32), bool))
    full = picture(tmp_path / "full.png", np.ones((32, 32), bool))
    some = picture(tmp_path / "some.png", np.eye(32, dtype=bool))
    for module, sketch, said in (
        (sketching, empty, "nothing is drawn in it"), (sketching, full, "nothing is drawn in it"),
        (tiny_diffusion, some, "this model reads none"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            planned(module, cfg_for(checkpoint, tmp_path / "out", prompt=("a cat",), num=1, sketch=sketch))
    plan, _ = planned(sketching, cfg_for(checkpoint, tmp_path / "out", prompt=("a cat",), num=1, sketch=some))
    assert len(json.loads(json.dumps(plan.about(0, 1)))["sketch"]) == 64


def test_an_evaluation_shows_sketches_beside_what_is_drawn_from_them(sketching: DiffusionModule) -> None:
    held_out = load_splits(replace(sketching.cfg.data, limit=4))[1]
    picture = sketch_grid(sketching, held_out, EvaluateCfg("x", steps=(4, 1), sketches=True))
    narrow = mask_grid({"a": [[held_out.images[0]] * 8] * 10}, [""] * 10, 64)
    assert picture.width > narrow.width  # eight masks in a row, labels, gaps
    assert picture.height == pytest.approx(narrow.height, abs=40)
    again = sketch_grid(sketching, held_out, EvaluateCfg("x", steps=(4, 1), sketches=True))
    assert picture.tobytes() == again.tobytes()


def test_the_model_icons_follows_a_sketch() -> None:
    model = load_mask_model(checkpoint_path("icons"))
    held_out = load_splits(ICONS)[1]
    seeds = list(range(0, len(held_out), len(held_out) // 24))[:24]
    real, prompts = torch.from_numpy(held_out.images[seeds]), [held_out.prompts[i] for i in seeds]
    way, cpu = Recipe(model.sampler, 1), torch.device("cpu")
    followed, alone = (
        float(iou(draw(model, prompts, seeds, replace(way, sketch=sketch), cpu)[:, 0] > 0.5, real > 0).mean())
        for sketch in (sketches_of(real, 16, 0), None)
    )
    assert followed > 0.5
    assert followed > alone + 0.1  # 0.71 and 0.52
