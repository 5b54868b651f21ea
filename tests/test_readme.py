"""The README's commands parse, its sampler works as printed, and the files it names exist."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.bakeoff_cfg import BakeoffCfg
from configs.bakeoffs import PLANS
from configs.benchmark_cfg import BenchmarkCfg
from configs.caption_masks_cfg import CaptionMasksCfg
from configs.check_data_cfg import CheckDataCfg
from configs.cli import parse, parse_preset
from configs.demo_cfg import DemoCfg
from configs.evaluate_cfg import EvaluateCfg
from configs.export_cfg import ExportCfg
from configs.figures_cfg import FiguresCfg
from configs.generate_cfg import GenerateCfg
from configs.import_cfg import IMPORTS
from configs.presets import STAGE_1, STAGE_2
from configs.quickstart_cfg import QuickstartCfg
from configs.report_cfg import ReportCfg
from configs.sampler_cfg import FlowCfg
from samplers import FlowMatching
from scripts.make_shards import PRESETS as MAKE_SHARDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PRESETS: dict[str, Any] = {"train_stage_1": STAGE_1, "train_stage_2": STAGE_2, "import_autoencoder": IMPORTS}
CONFIGS: dict[str, type] = {
    "generate_masks": GenerateCfg, "evaluate": EvaluateCfg, "export": ExportCfg, "report": ReportCfg,
    "check_data": CheckDataCfg, "caption_masks": CaptionMasksCfg, "figures": FiguresCfg, "demo": DemoCfg,
}


def commands_of(text: str) -> list[list[str]]:
    """The words of every command of a page that is no pattern."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    codes = re.findall(r"`((?:bash|\.venv/bin/python -m) scripts[^`]+)`", text)
    lines += [code for code in codes if "[" not in code]
    return [shlex.split(line, comments=True) for line in lines]


def parse_command(words: list[str]) -> str:
    """Parse a command as its script would; returns the script's name."""
    script = next(word for word in words if "scripts" in word)
    name = Path(script).stem if script.endswith(".sh") else script.rpartition(".")[2]
    rest = words[words.index(script) + 1 :]
    if script.startswith("scripts/launch."):  # of several processes: what they run
        started = next(word for word in rest if not word.isdigit())
        parse_command([f"scripts.{started}", *rest[rest.index(started) + 1 :]])
    elif name in PRESETS:
        parse_preset(PRESETS[name], rest[1:] if rest[:1] == ["runs/mine/config.json"] else rest, name)
    elif name == "benchmark":
        parse(BenchmarkCfg, rest, name, flags=True)
    elif name in CONFIGS:
        parse(CONFIGS[name], rest, name)
    elif name == "quickstart" and rest:
        parse(QuickstartCfg, rest, name)
    elif name == "bakeoff":
        assert parse(BakeoffCfg, rest, name).plan in PLANS
    elif name == "make_shards":
        assert parse_preset(MAKE_SHARDS, rest, name)[1].out
    else:
        assert (ROOT / script).exists() or (ROOT / f"{script.replace('.', '/')}.py").exists(), script
    return name


def test_every_command_of_the_readme_parses() -> None:
    seen = {parse_command(words) for words in commands_of(TEXT)}
    assert {"quickstart", "test", "train_stage_1", "train_stage_2", "generate_masks", "evaluate", "benchmark"} <= seen


def test_every_preset_is_valid_and_the_readme_names_it() -> None:
    begun = {name for name, make in STAGE_2.items() if make().init}  # which bring their own stage 1
    grown = {name for name, make in STAGE_1.items() if make().init}  # which stage 2 begins with, too
    assert STAGE_1.keys() == STAGE_2.keys() - begun | grown
    for name, make in (*STAGE_1.items(), *STAGE_2.items()):
        make()
        assert f"`{name}`" in TEXT


def test_files_that_the_readme_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#h][^)#]*)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_sampler_of_the_readme_is_of_second_order() -> None:
    source = re.search(r"```python\n(.*?)```", TEXT, re.S)
    assert source
    names = {"dataclass": dataclass, "FlowCfg": FlowCfg, "FlowMatching": FlowMatching, "torch": torch}
    exec(source[1], names)
    midpoint = names["Midpoint"](names["MidpointCfg"]())  # type: ignore[operator]  # made by exec
    noise = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def growth(x: torch.Tensor, t: torch.Tensor, dt: torch.Tensor, cond: object) -> torch.Tensor:
        return x  # dx/dt = x, so that x(1) = e x(0)

    class Nothing:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"guidance 1 needs no {name}")

    errors = []
    for steps in (16, 32):
        end = midpoint.sample(growth, noise, Nothing(), steps=steps)
        errors.append((end / noise - torch.e).abs().max())
    assert 3.8 < errors[0] / errors[1] < 4.2
