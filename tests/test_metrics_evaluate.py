"""The evaluation around a fake module whose masks are exactly those that the prompt asks for."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.backbone_cfg import UNetCfg
from configs.checks import ConfigError
from configs.diffusion_cfg import Stage2Cfg
from configs.evaluate_cfg import EvaluateCfg
from configs.sampler_cfg import ShortcutCfg
from data.masks import MaskSet
from metrics.comparison import as_row, quality_figure
from metrics.geometry import describe
from metrics.reconstruction import iou
from metrics.report import as_table, summaries, summary
from scripts.evaluate import draw_order, evaluate, reals_like, sketches_of


def bars(n: int, seed: int, prompt: str = "") -> MaskSet:
    """Lying and standing bars of 16x16 pixels, in turn; ``prompt`` replaces their names by different captions."""
    g = np.random.default_rng(seed)
    images = np.zeros((n, 16, 16), np.uint8)
    for i, image in enumerate(images):
        at = int(g.integers(2, 12))
        (image if i % 2 else image.T)[at : at + 2, 3:13] = 1
    names = [f"{prompt} {i}" if prompt else ("lying" if i % 2 else "standing") for i in range(n)]
    return MaskSet(images, names, names)


class Same(nn.Module):
    """An autoencoder that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def to_latent(self, x: Tensor) -> Tensor:
        return x

    def to_pixels(self, z: Tensor) -> Tensor:
        return (z - 0.5) * 20


class Perfect:
    """Draws a bar of the right direction at a place that the noise decides."""

    latent_shape = (1, 2, 2)
    reader = None
    cfg = Stage2Cfg(sampler=ShortcutCfg())
    autoencoder = Same()

    def generate(self, prompts: list[str], noise: Tensor, **how: Any) -> Tensor:
        p = torch.full((len(prompts), 1, 16, 16), 0.01)
        for mask, prompt, z in zip(p[:, 0], prompts, noise, strict=True):
            at = 2 + int(z[0, 0, 0].abs() * 1000) % 10
            (mask if prompt == "lying" else mask.T)[at : at + 2, 3:13] = 0.99
        return p


def test_perfect_masks_are_right_crisp_and_as_near_as_real_ones():
    cfg = EvaluateCfg("x", seeds=2, steps=(1, 4), classifier_steps=30)
    report = evaluate(Perfect(), bars(100, 0), bars(60, 1), cfg)
    perfect = {"iou": 1.0, "dice": 1.0, "boundary_f1": 1.0, "component_error": 0.0, "component_miss": 0.0, "num": 60}
    assert report["stage_1"] == perfect
    assert report["judge"]["accuracy"] == 1.0
    assert report["real"]["accuracy"] == {"mean": 1.0, "std": 0.0}
    assert [row["steps"] for row in report["steps"]] == [1, 4]
    for row in report["steps"]:
        assert row["accuracy"] == {"mean": 1.0, "std": 0.0}
        assert row["grey"]["mean"] == 0.0
        assert row["frechet"]["mean"] < 10 * report["real"]["frechet"]["mean"] + 0.5
        assert row["memorised"]["mean"] == 1.0  # there are only 20 such bars, and all of them are in the training set
        assert row["memorised_above"]["mean"] == 0.0
        assert row["shape_area"]["mean"] == pytest.approx(0)
        assert row["coverage"]["mean"] > 0.9
    table = as_table(report)
    assert "IoU 1.0000" in table
    assert "±" in table


def test_the_table_has_each_number_in_its_column_and_its_unit():
    number = {"mean": 0.0, "std": 0.0}
    row = {
        "accuracy": {"mean": 0.9, "std": 0.01}, "frechet": {"mean": 1.25, "std": 0.5},
        "kernel": {"mean": 0.00123, "std": 0.0001}, "coverage": {"mean": 0.8, "std": 0.02}, "grey": {"mean": 0.0321},
    } | {f"shape_{name}": number for name in ("area", "perimeter", "components", "holes", "eccentricity")}
    report = {
        "stage_1": {"num": 5, "iou": 0.9, "dice": 0.9, "boundary_f1": 0.9, "component_miss": 0.1}, "num": 7,
        "judge": {"accuracy": 0.97}, "features": "x", "frechet_name": "y", "seeds": [0, 1], "sampler": "z",
        "guidance": 1.0, "num_held_out": 5, "real": row | {"accuracy": {"mean": 0.5}}, "steps": [row | {"steps": 4}],
    }
    lines = as_table(report).splitlines()
    title = next(line for line in lines if "accuracy" in line and "Frechet" in line)
    assert title.split() == ["accuracy", "Frechet", "kernel", "x1000", "coverage", "grey"]
    cells = " ".join(next(line for line in lines if line.strip().startswith("4 steps")).split())
    assert cells == "4 steps 0.900 ± 0.010 1.250 ± 0.500 1.23 ± 0.10 0.800 ± 0.020 3.21%"
    assert next(line for line in lines if line.strip().startswith("real")).split()[2] == "0.500"


def test_captions_that_all_differ_have_no_accuracy_and_the_report_says_so():
    report = evaluate(Perfect(), bars(230, 0, "bar"), bars(30, 1, "bar"), EvaluateCfg("x", num=20, steps=(1,)))
    assert "no prompt accuracy" in report["judge"]["note"]
    assert "accuracy" not in report["steps"][0]
    assert "no prompt accuracy" in as_table(report)


def test_captions_that_all_differ_are_judged_by_retrieval_where_there_are_a_hundred():
    held_out = bars(120, 1, "bar")
    few = evaluate(Perfect(), bars(230, 0, "bar"), bars(30, 1, "bar"), EvaluateCfg("x", num=20, steps=(1,)))
    many = evaluate(Perfect(), bars(230, 0, "bar"), held_out, EvaluateCfg("x", num=120, steps=(1,), search=0))
    assert "retrieval" not in few["steps"][0]
    assert 0 <= many["steps"][0]["retrieval"]["mean"] < 0.2  # this model does not know what "bar 7" looks like
    assert "retrieval" not in many["real"]  # each would be found from itself
    assert "120 masks per row, seeds" in as_table(many)
    assert "memorised" not in many["steps"][0]


def test_the_table_says_where_there_are_fewer_real_masks_than_drawn_ones():
    cfg = EvaluateCfg("x", num=90, steps=(1,), search=0, classifier_steps=10)
    assert "90 masks per row (40 real ones" in as_table(evaluate(Perfect(), bars(40, 0), bars(30, 1), cfg))


def test_captions_of_geometry_are_no_classes_and_are_followed_as_often_as_the_masks_say():
    train, held_out = (bars(n, seed) for n, seed in ((100, 0), (40, 1)))
    train, held_out = (
        MaskSet(m.images, [own.caption for own in describe(torch.from_numpy(m.images))], m.names)
        for m in (train, held_out)
    )
    report = evaluate(Perfect(), train, held_out, EvaluateCfg("x", num=40, steps=(1,)))
    assert "accuracy" not in report["steps"][0]
    assert {report["real"][f"{word}_right"]["mean"] for word in ("count", "size", "shape", "place", "all")} == {1.0}
    found = {word: report["steps"][0][f"{word}_right"]["mean"] for word in ("count", "size", "shape", "place")}
    assert (found["count"], found["size"], found["shape"]) == (1.0, 1.0, 1.0)  # always one bar of 20 pixels of 256
    assert 0 < found["place"] < 1  # its place is the noise's
    assert "place right" in as_table(report)


class Following(Perfect):
    """Draws the left half of the sketch that it is shown."""

    cfg = replace(Perfect.cfg, backbone=UNetCfg(sketch=32))
    latent_shape = (1, 4, 4)  # a quarter of the masks, as a network has it that looks at all of a sketch

    def generate(self, prompts: list[str], noise: Tensor, *, sketch: Tensor, **how: Any) -> Tensor:
        assert len(sketch) == len(prompts)
        return 0.98 * sketch * (torch.arange(16) < 8) + 0.01


def test_masks_are_compared_with_the_mask_whose_sketch_was_shown():
    held_out = bars(60, 1)
    cfg = EvaluateCfg("x", steps=(1,), sketches=True, search=0, classifier_steps=30)
    report = evaluate(Following(), bars(100, 0), held_out, cfg)
    real = torch.from_numpy(held_out.images)[draw_order(60, 60, torch.Generator().manual_seed(0))]
    sketches = sketches_of(real, 4, 0)[:, 0]
    assert report["real"]["sketch_iou"]["mean"] == pytest.approx(float(iou(sketches, real).mean()))
    half = sketches * (torch.arange(16) < 8)
    assert report["steps"][0]["sketch_iou"]["mean"] == pytest.approx(float(iou(half, real).mean()))
    assert "IoU to sketch" in as_table(report)
    with pytest.raises(ConfigError, match="reads none"):
        evaluate(Perfect(), bars(100, 0), held_out, EvaluateCfg("x", sketches=True))
    with pytest.raises(ConfigError, match="tries"):
        EvaluateCfg("x", sketches=True, tries=2)


def test_prompts_have_the_frequencies_of_the_held_out_split():
    prompts = ["cat"] * 3 + ["dog"] * 1
    drawn = [prompts[i] for i in draw_order(4, 40, torch.Generator().manual_seed(0))]
    assert Counter(drawn) == {"cat": 30, "dog": 10}
    assert len(draw_order(4, 3, torch.Generator())) == 3


def test_real_masks_of_the_floor_are_different_ones_with_the_wanted_prompts():
    available, wanted = ["cat"] * 10 + ["dog"] * 2, ["cat"] * 4 + ["dog"] * 4
    chosen = reals_like(available, wanted, torch.Generator().manual_seed(0))
    assert len(set(chosen)) == len(chosen) == 8
    assert Counter(available[i] for i in chosen) == {"cat": 6, "dog": 2}  # two dogs are all there are


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ConfigError, match="too few"):
        evaluate(Perfect(), bars(5, 0), bars(1, 0), EvaluateCfg("x"))
    for wrong in ({"steps": ()}, {"num": 1}, {"seeds": 0}, {"guidance": -1.0}, {"inception": "f"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            EvaluateCfg("x", **wrong)


def test_a_summary_has_a_spread_only_where_there_are_several_values():
    assert summary([2.0]) == {"mean": 2.0}
    assert summary([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5)}


def test_a_number_that_empty_masks_have_not_is_left_out() -> None:
    """A young model draws such in one step; what else was measured must not be lost."""
    nothing = {"shape_eccentricity": math.nan, "grey": 0.5}
    assert summaries([nothing]) == {"grey": {"mean": 0.5}}
    assert summaries([nothing, {"shape_eccentricity": 0.1, "grey": 0.5}]) == {"grey": {"mean": 0.5, "std": 0.0}}
    assert all(math.isnan(value) for value in summary([math.nan, 1.0]).values())  # of an older evaluation


def test_numbers_that_not_all_repetitions_have_are_left_out(tmp_path: Path) -> None:
    """Retrieval wants a hundred captions, and a draw may have fewer of them than another."""
    both, one = {"a": 1.0, "b": 2.0}, {"a": 3.0}
    for results in ([both, one], [one, both]):
        assert summaries(results) == {"a": {"mean": 2.0, "std": pytest.approx(2**0.5)}}
    assert list(summaries([{"b": 1.0, "a": 1.0}, both])) == ["b", "a"]

    def judged(**further: float) -> dict[str, Any]:
        numbers = {key: {"mean": value} for key, value in {"frechet": 1.0, **further}.items()}
        trained = {"train": {"max_steps": 7, "seed": 0}}
        return {"guidance": 1.0, "num": 5, "trained": trained, "real": numbers, "steps": [{"steps": 1} | numbers]}

    for reports in ([judged(), judged(retrieval=0.5)], [judged(retrieval=0.5), judged()]):
        row = as_row("a", reports)
        assert set(row["steps"]["1"]) == set(row["real"]) == {"frechet"}
        quality_figure([as_row("b", [report]) for report in reports], tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()
