"""The rules that choose a training for a folder of masks, and the whole way from such a folder to pictures."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.checks import ConfigError
from configs.cli import from_dict, to_dict
from configs.diffusion_cfg import Stage2Cfg
from configs.presets import TRAJECTORY
from configs.quickstart_cfg import Facts, QuickstartCfg, own_masks, trained
from configs.shipped import checkpoint_path
from data.fit import fit_masks
from data.masks import MaskSet
from diffusion import load_diffusion
from metrics.geometry import adherence
from metrics.grammar import COUNTS, PLACES, SHAPES, SIZES, Geometry
from scripts import quickstart
from scripts.mask_model import load_mask_model
from tests.data_fixtures import write_mask
from tests.own_masks import drawing

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [  # image size, factor, latent channels, batch, width, tokens
        (Facts(450, {32: 0.95}, 9, False), (32, 4, 2, 64, 64, 16)),
        (Facts(450, {32: 0.95}, 9, False, from_geometry=True), (32, 4, 2, 128, 64, 16)),
        (Facts(3, {32: 1.0}, 33, False), (32, 4, 2, 16, 64, 64)),
        (Facts(10**6, {32: 1.0}, 300, False), (32, 4, 2, 128, 64, 64)),
        (Facts(512, {32: 1.0, 64: 1.0}, 16, True), (32, 2, 4, 128, 96, 16)),
    ],
)
def test_the_rules_are_those_of_their_docstring(facts: Facts, expected: tuple[int, ...]) -> None:
    stage_1, stage_2 = own_masks("masks", facts, 20.0)
    assert stage_1 is not None
    size = stage_1.data.image_size
    assert (
        size, stage_1.autoencoder.factor, stage_1.autoencoder.latent_channels, stage_1.data.batch_size,
        stage_2.backbone.width, stage_2.text.max_tokens,
    ) == expected  # fmt: skip
    side = size // stage_1.autoencoder.factor
    assert side == (16 if facts.on_gpu else 8)
    assert side % stage_2.backbone.factor == 0
    assert stage_2.data == stage_1.data
    assert (stage_1.train.max_minutes, stage_2.train.max_minutes) == (pytest.approx(4), pytest.approx(13))
    assert stage_2.sampler == TRAJECTORY
    assert (stage_2.optim.muon_lr > 0) == (not facts.on_gpu)
    assert from_dict(Stage2Cfg, json.loads(json.dumps(to_dict(stage_2)))) == stage_2


@pytest.mark.parametrize(("facts", "size", "batch", "versions", "init", "autoencoder"), [
    (Facts(450, {32: 0.89, 64: 0.9}, 17, False), 64, 64, 1, "icons", "auto"),
    (Facts(100, {32: 0.89, 64: 0.9}, 17, False, from_geometry=True), 64, 64, 24, "geometry", "auto"),
    (Facts(4096, {32: 0.0, 64: 0.9}, 16, True, from_geometry=True), 64, 512, 2, "geometry", "auto"),
    (Facts(450, {32: 0.89, 64: 0.89}, 17, False), 256, 64, 1, "icons256", "auto"),
    (Facts(100, {32: 0.89, 64: 0.0}, 17, False, from_geometry=True), 256, 64, 24, "geometry", "icons256"),
    (Facts(10_000, {32: 0.0, 64: 0.0}, 16, True), 256, 512, 1, "icons256", "auto"),
    (Facts(10_001, {32: 0.0, 64: 0.0}, 16, True), 64, 512, 1, "icons", "auto"),
])  # fmt: skip
def test_from_64_pixels_on_both_stages_of_a_model_are_the_beginning(
    facts: Facts, size: int, batch: int, versions: int, init: str, autoencoder: str
) -> None:
    stage_1, stage_2 = own_masks("masks", facts, 20.0)
    assert stage_1 is None
    assert (stage_2.init, stage_2.autoencoder) == (init, autoencoder)
    assert stage_2.data.image_size == size
    assert (stage_2.data.batch_size, stage_2.data.augment.versions) == (batch, versions)
    assert stage_2.train.max_minutes == pytest.approx(17)
    assert (stage_2.optim.muon_lr > 0) == (not facts.on_gpu)
    assert from_dict(Stage2Cfg, json.loads(json.dumps(to_dict(stage_2)))) == stage_2


def test_judging_and_drawing_get_three_minutes_or_a_fifth() -> None:
    assert [trained(minutes) for minutes in (1, 10, 15, 60)] == [0.8, 8, 12, 57]


def test_the_autoencoder_of_icons_rebuilds_drawings_that_it_never_saw() -> None:
    """Why the rules trust it at 64 pixels (IoU 0.998)."""
    draw, model = np.random.default_rng(0), load_mask_model(checkpoint_path("icons"))
    masks = np.concatenate([fit_masks(drawing(draw)[None], 64) for _ in range(24)])
    x = torch.from_numpy(masks)[:, None].float()
    with torch.inference_mode():
        rebuilt = (model.autoencoder.to_pixels(model.autoencoder.to_latent(x)) > 0).numpy()[:, 0]
    both, either = (rebuilt & (masks > 0)).sum((1, 2)), (rebuilt | (masks > 0)).sum((1, 2))
    assert (both / either).mean() > 0.995


def test_a_mask_is_crisp_where_shrinking_and_enlarging_keeps_it() -> None:
    blocks = np.kron(np.eye(16, dtype=np.uint8), np.ones((16, 16), np.uint8))  # of 2x2 pixels at 32
    lines = np.zeros((256, 256), np.uint8)
    lines.reshape(8, 32, 256)[:, :4] = 1  # half a pixel at 32, one at 64
    y, x = np.mgrid[:256, :256]
    disk = ((y - 128) ** 2 + (x - 128) ** 2 < 900).astype(np.uint8)  # its outline wants more than 64
    masks, large = np.stack([blocks, blocks, disk, lines]), np.full(4, 500)
    assert quickstart.crisp_shares(masks, large) == {32: 0.75, 64: 0.75}
    assert quickstart.crisp_shares(masks, np.array([500, 500, 60, 28])) == {32: 1.0, 64: 1.0}  # no more is in the files
    assert quickstart.crisp_shares(np.zeros((1, 256, 256), np.uint8), large[:1]) == {32: 1.0, 64: 1.0}


@pytest.mark.parametrize("wrong", [{"data": " "}, {"data": "masks", "minutes": 0.0}])
def test_what_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        QuickstartCfg(**wrong)  # type: ignore[arg-type]


def test_what_is_drawn_does_not_go_among_the_masks(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    with pytest.raises(ConfigError, match="lies in the folder of your masks"):
        quickstart.free_folder(str(tmp_path / "masks" / "out"), str(tmp_path / "masks"))
    assert quickstart.free_folder(str(tmp_path / "masks-2"), str(tmp_path / "masks")) == tmp_path / "masks-2"


@pytest.mark.slow(longest=True)
def test_a_folder_without_captions_becomes_a_model_that_was_asked_for_its_geometry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for i in range(60):
        mask = np.zeros((32, 32), np.uint8)
        y, x = rng.integers(1, 20, 2)
        mask[y : y + 4 + i % 7, x : x + 4 + i % 5] = 1
        write_mask(tmp_path / f"masks/{i}.png", mask)
    for name, few in (("PROMPTS", 2), ("EACH", 1), ("LEAST_JUDGED", 8)):
        monkeypatch.setattr(quickstart, name, few)
    monkeypatch.setattr("scripts.seeded.TRIES", 2)  # it learns for a second: no try would follow
    monkeypatch.chdir(tmp_path)
    quickstart.main(["--data", "masks", "--minutes", "0.02", "--out", "made"])
    told = capsys.readouterr().out
    assert "chosen: 32 pixels" in told
    assert "place right" in told
    assert len((tmp_path / "masks/metadata.jsonl").read_text().splitlines()) == 60
    made = tmp_path / "made"
    assert (made / "masks/grid.png").is_file()
    for stage in ("stage1", "stage2"):
        assert json.loads((made / stage / "run.json").read_text())["status"] == "complete"
    rows = [json.loads(line) for line in (made / "masks/manifest.jsonl").read_text().splitlines()]
    assert [row["steps"] for row in rows] == [1, 1, 4, 4, 32, 32]
    with pytest.raises(SystemExit) as end:
        quickstart.main(["--data", "masks", "--out", "made"])
    assert end.value.code == 2
    assert "is not an empty folder" in capsys.readouterr().err


class Clock:
    """Time that passes where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(quickstart, "time", SimpleNamespace(monotonic=lambda: self.now))

    def takes(self, seconds: float) -> None:
        self.now += seconds


def masks_of(prompts: list[str]) -> MaskSet:
    return MaskSet(np.zeros((len(prompts), 8, 8), np.uint8), prompts, [str(i) for i in range(len(prompts))])


@pytest.mark.parametrize(("masks", "held_out"), [(50, 0), (50, 1), (49, 9), (50, 2)])
def test_masks_are_drawn_also_where_too_few_are_held_out_to_be_judged(
    masks: int, held_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []
    monkeypatch.setattr("scripts.evaluate.main", lambda words: called.append("judged"))
    monkeypatch.setattr("scripts.generate_masks.main", lambda words: called.append("drawn"))
    splits = masks_of(["a cat"] * 5), masks_of(["a cat"] * held_out)
    quickstart.draw_and_judge(tmp_path / "last.ckpt", ["a cat"] * (masks - 1) + [""], splits, tmp_path, 10, 0)
    enough = masks == 50 and held_out == 2
    assert called == ["drawn", "judged"][: 1 + enough]
    assert (f"not judged: {held_out} of {masks} masks are held out" in capsys.readouterr().out) != enough
    assert (tmp_path / "prompts.txt").read_text() == "a cat\nBinary Mask\n"


@pytest.mark.parametrize(("minutes", "left", "judged", "steps"), [
    (15, 180.0, 256, 500),
    (15, 60.0, 256, 290),  # half of a minute at 0.1 seconds a step, ten of which are for the trial
    (10, 120.0, 171, 500),
    (2, 24.0, 64, 110),
    (2, -30.0, 64, 50),
])  # fmt: skip
def test_judging_takes_the_time_that_is_left_for_it(
    minutes: float, left: float, judged: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    clock = Clock(monkeypatch)
    monkeypatch.setattr("scripts.generate_masks.main", lambda words: clock.takes(5))
    monkeypatch.setattr("scripts.evaluate.main", told.append)
    monkeypatch.setattr("metrics.classifier.train_classifier", lambda *_, steps, progress: clock.takes(0.1 * steps))
    for prompts, expected in ((["a cat", "a dog"] * 40, steps), ([f"picture {i}" for i in range(300)], 500)):
        began = clock.now + left + 5 - 60 * minutes
        splits = masks_of(prompts), masks_of(prompts[:8])
        quickstart.draw_and_judge(tmp_path / "last.ckpt", prompts, splits, tmp_path, minutes, began)
        words = told.pop()
        assert int(words[words.index("--num") + 1]) == judged
        assert int(words[words.index("--classifier-steps") + 1]) == expected


def test_a_folder_that_cannot_be_trained_on_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mask(tmp_path / "masks/a.png")
    with pytest.raises(SystemExit) as end:
        quickstart.main(["--data", "masks"])
    assert end.value.code == 2
    told = capsys.readouterr()
    assert "training would fail: the data set has 1 masks" in told.out
    assert told.err == "quickstart: masks cannot be trained on: see above\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["masks", "a.png"]


def test_the_shell_script_refuses_what_is_no_option_before_the_set_up() -> None:
    command = ["bash", "scripts/quickstart.sh", "masks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "bash scripts/quickstart.sh --data FOLDER" in done.stderr


def test_the_model_geometry_places_and_sizes_what_it_is_asked_for() -> None:
    """What it is there for: a training on masks without captions begins with it (it counts right in half of them)."""
    asked = [Geometry(count, size, shape, place).caption for count in COUNTS[:3] for size in SIZES[:2]
             for shape in SHAPES for place in sum(PLACES, ())]  # fmt: skip
    asked = asked[::2]
    model = load_diffusion(checkpoint_path("geometry"))
    noise = torch.randn(len(asked), *model.latent_shape, generator=torch.Generator().manual_seed(0))
    drawn = model.generate(asked, noise, steps=1) > 0.5
    found = adherence(drawn, asked)
    assert found["size_right"] > 0.7
    assert found["place_right"] > 0.7
    assert found["count_right"] > 0.35  # of six words
