"""Comparing trainings: the table over evaluations, equal time, a whole small bakeoff that is stopped and goes on."""

import errno
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
from conftest import TINY_1, TINY_2

from configs import bakeoffs
from configs.bakeoff_cfg import BakeoffCfg
from configs.bakeoffs import PLANS, Entrant
from configs.checks import ConfigError
from configs.sampler_cfg import FlowCfg, ShortcutCfg, SoFlowCfg, TrajectoryCfg
from configs.whole_file import write_text
from metrics.comparison import as_markdown, gather, quality_figure
from samplers import When
from scripts import bakeoff
from scripts.benchmark import mean_over_training


def judged(folder: Path, seed: int, distance: float, guidance: float = 1.0) -> None:
    folder.mkdir(exist_ok=True)
    report = {
        "guidance": guidance, "num": 50, "trained": {"train": {"max_steps": 7, "seed": seed}},
        "real": {"frechet": {"mean": 0.5}, "accuracy": {"mean": 0.98}},
        "steps": [
            {"steps": n, "frechet": {"mean": distance / n}, "accuracy": {"mean": 0.9}} for n in (1, 4)
        ],
    }  # fmt: skip
    write_text(folder / f"evaluation-{guidance:g}.json", json.dumps(report))  # whole, as evaluate writes it


def test_the_table_has_mean_and_deviation_over_seeds_and_the_best_first(tmp_path: Path) -> None:
    judged(tmp_path / "a0", 0, 3.0)
    judged(tmp_path / "a1", 1, 5.0)
    judged(tmp_path / "b0", 0, 2.0)
    judged(tmp_path / "b0", 0, 8.0, guidance=2.0)
    runs = [("a", tmp_path / "a0"), ("a", tmp_path / "a1"), ("b", tmp_path / "b0"), ("c", tmp_path / "not judged yet")]
    rows = gather(runs, {"a": 0.2, "b": 0.3, "c": 0.1})
    found = [(row["name"], row["guidance"], len(row["seeds"])) for row in rows]
    assert found == [("a", 1, 2), ("b", 1, 1), ("b", 2, 1)]
    assert rows[0]["steps"]["1"]["frechet"] == {"mean": 4.0, "std": pytest.approx(2**0.5)}
    assert rows[1]["cost"] == pytest.approx(1.5)
    lines = as_markdown(rows).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["b", "a", "b"]
    assert "4.000 ± 1.414, 0.900 ± 0.000" in lines[3]
    assert "floor 0.500" in lines[-1]
    quality_figure(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_where_prompts_are_no_classes_the_table_has_retrieval(tmp_path: Path) -> None:
    judged(tmp_path / "a0", 0, 3.0)
    path = tmp_path / "a0" / "evaluation-1.json"
    path.write_text(path.read_text().replace('"accuracy"', '"retrieval"'))
    table = as_markdown(gather([("a", tmp_path / "a0")], {"a": 1.0}))
    assert "| 3.000, 0.900 | 0.750, 0.900 |" in table
    assert "prompt retrieval; N = 50" in table


@pytest.mark.parametrize("plan", PLANS)
def test_every_entrant_of_every_plan_is_a_whole_config_on_the_same_data(plan: str) -> None:
    entrants = PLANS[plan]()
    assert len(entrants) > 2
    assert len({entrant.stage_2.data for entrant in entrants.values()}) == 1
    for name, entrant in entrants.items():
        assert entrant.stage_1.data == entrant.stage_2.data
        assert Path(name).name == name  # it names a folder
        assert entrant.stage_2.train.quality == 0  # judging would be part of its time


def small_plan(runs: Path) -> dict[str, Entrant]:
    stage_2 = replace(TINY_2, train=replace(TINY_2.train, max_steps=50, runs=str(runs)))
    return {
        "flow": Entrant(replace(stage_2, sampler=FlowCfg()), TINY_1, (1.0, 2.0)),
        "soflow": Entrant(replace(stage_2, sampler=SoFlowCfg(train_guidance=2.0)), TINY_1),
    }


def cfg(folder: Path, **changes: Any) -> list[str]:
    values = {"--plan": "small", "--steps": "4", "--num": "12", "--eval-steps": "1", "--search": "8",
              "--out": str(folder), **changes}  # fmt: skip
    return [word for pair in values.items() for word in pair]


def test_what_a_bakeoff_goes_on_from_is_whole_after_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metrics.comparison.quality_figure", lambda *_: None)
    monkeypatch.setattr("scripts.benchmark.step_times", lambda entrants: {name: [1.0] for name in entrants})
    judged(tmp_path / "a0", 0, 3.0)
    job = bakeoff.Job("a", 0, tmp_path / "a0", {"stage": 2})
    before = set(tmp_path.rglob("*"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: bakeoff.write_job(job.folder, job.about),
        lambda: bakeoff.report([job], {"a": 1.0}, tmp_path),
        lambda: bakeoff.step_costs(PLANS["objectives"](), BakeoffCfg(), tmp_path / "costs.json"),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.slow(longest=True)
def test_a_bakeoff_trains_judges_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bakeoffs.PLANS, "small", partial(small_plan, tmp_path))
    monkeypatch.setattr("scripts.benchmark.REPEATS", 1)
    monkeypatch.setattr("scripts.bakeoff.CLASSIFIER_STEPS", 20)
    folder = tmp_path / "out"
    bakeoff.main([*cfg(folder), "--only", "flow"])
    first = (folder / "flow-seed0" / "last.ckpt").stat().st_mtime_ns
    bakeoff.main(cfg(folder))
    words = capsys.readouterr().out
    assert "1 of 2 trainings are done" in words
    assert (folder / "flow-seed0" / "last.ckpt").stat().st_mtime_ns == first
    rows = json.loads((folder / "results.json").read_text())
    assert [(row["name"], row["guidance"]) for row in rows] == [("flow", 1.0), ("flow", 2.0), ("soflow", 1.0)]
    costs = json.loads((folder / "costs.json").read_text())
    assert rows[2]["training_steps"] == round(4 * costs["flow"] / costs["soflow"])
    assert (folder / "results.png").exists()
    for run in ("flow-seed0", "soflow-seed0"):  # one device each, as its step was timed, however many there are
        assert json.loads((folder / run / "config.json").read_text())["train"]["devices"] == 1
    assert "| soflow |" in (folder / "results.md").read_text()
    with pytest.raises(SystemExit, match="2"):
        bakeoff.main(cfg(folder, **{"--steps": "8"}))
    assert "holds a training with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--plan", "objective"], "there is no plan 'objective'; configs/bakeoffs.py has: objectives"),
        (["--only", "nothing"], "the plan objectives has no 'nothing'; it has: flow"),
    ],
)
def test_unknown_plans_and_entrants_are_refused(
    args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bakeoff.main(args)
    assert sentence in capsys.readouterr().err


def some_jobs(tmp_path: Path) -> list[bakeoff.Job]:
    return [bakeoff.Job(name, 0, tmp_path / name, {"stage": 2}) for name in "abc"]


def test_a_training_that_fails_keeps_none_of_the_others_from_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(folder: Path, threads: int) -> None:
        if folder.name == "a":
            raise ConfigError("a ended with exit code 1")
        judged(folder, 0, 3.0)

    monkeypatch.setattr(bakeoff, "worker", work)
    with pytest.raises(ConfigError, match="a ended"):
        bakeoff.run_all(some_jobs(tmp_path), dict.fromkeys("abc", 1.0), BakeoffCfg(), tmp_path)
    assert {row["name"] for row in json.loads((tmp_path / "results.json").read_text())} == {"b", "c"}


def test_nothing_begins_any_more_after_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    at_work, stopped = Event(), Event()

    def work(folder: Path, threads: int) -> None:
        began.append(folder.name)
        at_work.set()
        stopped.wait(10)

    def interrupted(_: object) -> object:
        at_work.wait(10)
        Timer(0.3, stopped.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(bakeoff, "worker", work)
    monkeypatch.setattr(bakeoff, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bakeoff.run_all(some_jobs(tmp_path), dict.fromkeys("abc", 1.0), BakeoffCfg(), tmp_path)
    assert began == ["a"]


def test_settings_of_a_bakeoff_are_checked() -> None:
    for wrong in (
        {"steps": 0}, {"workers": 0}, {"seeds": ()}, {"equal": "luck"}, {"eval_steps": (0,)}, {"eval_steps": ()},
        {"num": 1},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            BakeoffCfg(**wrong)  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize(("begin", "every", "expected"), [(0.0, 1, 3.0), (0.0, 2, 2.0), (0.7, 2, 1.3), (0.5, 4, 1.25)])
def test_the_cost_of_a_step_weighs_what_comes_before_and_after_self_consistency_begins(
    begin: float, every: int, expected: float
) -> None:
    """A step with consistency rows costs 3 here, another 1."""
    cfg = ShortcutCfg(begin=begin, every=every, share=0.2)

    def seconds(when: When) -> float:
        return 3.0 if when.step % every == 0 and when.progress >= begin else 1.0

    assert mean_over_training(cfg, seconds) == pytest.approx(expected)


def test_the_cost_of_a_step_weighs_paths_by_velocities_and_by_jumps() -> None:
    cfg = TrajectoryCfg(begin=0.5, jumps_from=0.9, share=0.2, every=2)

    def seconds(when: When) -> float:
        return 1.0 if when.step % 2 or when.progress < 0.5 else 5.0 if when.progress < 0.9 else 3.0

    assert mean_over_training(cfg, seconds) == pytest.approx(0.5 * 1 + 0.4 * 3 + 0.1 * 2)


def test_plain_flow_matching_costs_its_step() -> None:
    assert mean_over_training(FlowCfg(), lambda when: 1.5) == 1.5
