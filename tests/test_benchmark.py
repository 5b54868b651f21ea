"""What the benchmark prints and saves; and that its parts run, on tiny networks."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_1, TINY_2

from configs.backbone_cfg import UNetCfg
from configs.beginning import require_attention
from configs.benchmark_cfg import BenchmarkCfg
from configs.checks import ConfigError
from configs.cli import parse
from configs.sampler_cfg import FlowCfg
from scripts.benchmark import measure
from scripts.benchmarks import generation, rivals, training
from scripts.benchmarks import report as report_module
from scripts.benchmarks.generation import peak_memory
from scripts.benchmarks.report import Report, interleaved, machine, meets
from scripts.benchmarks.step import operations, stage_2_step

CPU = torch.device("cpu")


def test_presets_without_a_stage_1_of_their_own_are_refused() -> None:
    for preset in ("animals-one-step", "icons-sketch", "icons256"):
        with pytest.raises(ConfigError, match="but it must be one with both stages: animals-tiny, "):
            BenchmarkCfg(preset)


def test_runs_take_turns_after_one_call_each_to_warm_up() -> None:
    calls = []

    def run(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    times = interleaved({"a": lambda: run("a"), "b": lambda: run("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert times == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 3), (3600.0, 5)])
def test_where_time_is_short_there_are_fewer_repeats(seconds: float, expected: int) -> None:
    assert len(interleaved({"a": lambda: 1.0}, 5, seconds)["a"]) == expected
    assert len(interleaved({"a": lambda: 1.0}, 2, seconds)["a"]) == 2


def test_a_report_is_one_flat_object_of_medians_and_spreads(tmp_path: Path, capsys: Any) -> None:
    report = Report()
    machine(report, CPU)
    report.ratio("ours", [1.0, 2.0, 9.0], [1.0, 1.0, 1.0], "<= 1.03")
    report.ratio("theirs", [1.0, 3.0, 2.0], [2.0, 2.0, 2.0], ">= 1")
    report.number("speed", 12.5, "GFLOP/s")
    report.save(str(tmp_path / "new" / "numbers.json"))
    saved = json.loads((tmp_path / "new" / "numbers.json").read_text())
    assert (saved["ours_ratio"], saved["ours_low"], saved["ours_high"]) == (2.0, 1.0, 9.0)
    assert (saved["theirs_ratio"], saved["speed"]) == (1.0, 12.5)
    assert not any(isinstance(value, dict | list) for value in saved.values())
    assert {"machine", "instructions", "gpu", "versions"} <= saved.keys()
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "ours_ratio" in line).endswith("MISSED: <= 1.03")
    assert next(line for line in lines if "theirs_ratio" in line).endswith("met: >= 1")


def test_goals_bound_from_above_or_below() -> None:
    assert meets(1.03, "<= 1.03")
    assert not meets(1.031, "<= 1.03")
    assert meets(24.0, ">= 24")
    assert not meets(23.9, ">= 24")


def test_the_command_line_takes_quick_as_a_switch_and_refuses_what_is_not_there() -> None:
    cfg = parse(BenchmarkCfg, ["icons", "--quick", "--json", "x.json", "--only", "data", "memory"], "b", flags=True)
    assert (cfg.preset, cfg.quick, cfg.json, cfg.only, cfg.rounds) == ("icons", True, "x.json", ("data", "memory"), 5)
    for wrong in ({"preset": "icon"}, {"only": ("speed",)}, {"repeats": -1}):
        with pytest.raises(ConfigError):
            BenchmarkCfg(**wrong)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.benchmarks.training.waiting", lambda *_: pytest.fail("measured"))
    with pytest.raises(OSError, match="directory"):
        measure(BenchmarkCfg(json=str(tmp_path), only=("data",)))


@pytest.mark.slow
def test_the_counted_work_of_a_step_grows_with_its_rows() -> None:
    works = []
    for rows in (4, 8, 16):
        cfg = replace(TINY_2, data=replace(TINY_2.data, batch_size=rows), sampler=FlowCfg())
        works.append(operations(stage_2_step(cfg, TINY_1, bf16=False, device=CPU)))
    few, some, many = works  # some of the work is that of transforming filters, whatever the rows
    assert many - some == pytest.approx(2 * (some - few), rel=0.01)
    assert some > 1.5 * few


def test_larger_masks_attend_where_the_preset_does(tmp_path: Path) -> None:
    setting = training.Setting(TINY_1, TINY_2, BenchmarkCfg(), CPU, tmp_path)
    for size, attends in ((32, (4,)), (64, (8,)), (128, (16,))):
        backbone = setting.flow_on(replace(TINY_2.data, image_size=size)).backbone
        assert isinstance(backbone, UNetCfg)
        assert backbone.attention_sizes == attends
        require_attention(backbone, size // TINY_1.autoencoder.factor)


@pytest.mark.slow
def test_the_parts_of_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PICTURES", 40)
    monkeypatch.setattr(training, "bf16_to_fp32", lambda: 1.0)  # also where it is emulated
    setting = training.Setting(TINY_1, TINY_2, BenchmarkCfg(repeats=1), CPU, tmp_path)
    report = Report()
    monkeypatch.setattr(report_module, "TRIES", 1)
    for name, few in (("SIDES", (8,)), ("PASSES", 1), ("GROWN", 4)):
        monkeypatch.setattr(training, name, few)
    for part in (
        training.layers, training.precision, training.objectives, training.pipeline, training.waiting, training.pixels,
    ):  # fmt: skip
        part(setting, report)
    ratios = {key: value for key, value in report.numbers.items() if key.endswith("_ratio")}
    assert {"pipeline_to_bare_loop_ratio", "default_to_flow_ratio", "stage_2_bf16_to_fp32_ratio",
            "wait_stage_1_folder_ratio", "wait_stage_2_icons64_ratio", "wavelet_up_8_bf16_ratio",
            "pixels_128_to_64_ratio"} <= ratios.keys()  # fmt: skip
    assert all(0 < value < 1000 for value in ratios.values())


def test_where_bf16_is_emulated_it_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "bf16_to_fp32", lambda: 10.2)
    monkeypatch.setattr(training, "SIDES", (8,))
    monkeypatch.setattr(training, "peak", lambda *_: 1e9)
    setting = training.Setting(TINY_1, TINY_2, BenchmarkCfg(repeats=1), CPU, tmp_path)
    report = Report()
    training.layers(setting, report)
    training.precision(setting, report)
    assert report.numbers["bf16"] == "not measured: emulated here, at 10 times the time of fp32"
    assert {"wavelet_up_8_fp32_ratio", "stage_1_fp32_share_of_conv_peak_ratio"} <= report.numbers.keys()
    assert not any("bf16" in key for key in report.numbers if key != "bf16")


@pytest.mark.parametrize(("wanted", "width"), [(1, 2), (4, 2), (10, 4), (12, 4), (13, 4), (14, 6), (33, 8), (99, 8)])
def test_the_network_of_the_nearest_size_is_found(wanted: int, width: int) -> None:
    """Of widths 2, 4, 6, 8 with 2, 8, 18, 32 parameters."""
    made = rivals.nearest(lambda width: torch.nn.Linear(width, width // 2, bias=False), range(2, 9, 2), wanted)
    assert made.in_features == width


def test_the_peak_memory_of_a_command_is_its_own_and_not_what_this_process_holds() -> None:
    held = bytearray(300 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])  # touched, so that it is there
    nothing = peak_memory([sys.executable, "-c", "pass"])
    assert nothing < 100
    much = peak_memory([sys.executable, "-c", "held = bytearray(120 * 2**20); held[::4096] = b'x' * len(held[::4096])"])
    assert nothing + 115 < much < nothing + 140
    with pytest.raises(subprocess.CalledProcessError):
        peak_memory([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_the_parts_of_generation_run_and_keep_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    for part in (generation, rivals):
        monkeypatch.setattr(part, "BATCH", 4)
    for name in ("disk", "memory"):
        (tmp_path / name).mkdir()
    cfg = BenchmarkCfg(repeats=1, quick=True)
    setting = training.Setting(TINY_1, TINY_2, cfg, CPU, tmp_path / "disk", tmp_path / "memory")
    report = Report()
    generation.speed(setting, report)
    rivals.compare(setting, report)
    ratios = {key: value for key, value in report.numbers.items() if key.endswith("_ratio")}
    assert {"files_to_bare_networks_ratio", "files_in_memory_to_bare_networks_ratio", "rival_ddim_50_to_ours_ratio",
            "rival_dpmpp_20_to_ours_ratio", "rival_training_step_to_ours_ratio"} <= ratios.keys()  # fmt: skip
    assert ratios["rival_ddim_50_to_ours_ratio"] > ratios["rival_dpmpp_20_to_ours_ratio"] > 0
    for kind in ("unet", "vae"):
        assert ratios[f"rival_{kind}_parameters_to_ours_ratio"] == pytest.approx(1, abs=0.1)
    grids = {name: list((tmp_path / name).glob("*/grid.png")) for name in ("disk", "memory")}
    assert len(grids["disk"]) == 4  # once to warm up and once to measure, in either number format
    assert len(grids["memory"]) == 2 + 2  # and beside diffusers' networks
