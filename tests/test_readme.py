"""The README's commands parse, its sampler works as printed, and the files it names exist."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

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
PAGES = TEXT + (ROOT / "docs" / "demo.md").read_text()


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGES, re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    lines += [code for code in re.findall(r"`((?:bash scripts|\.venv/bin/python -m)[^`]+)`", PAGES) if "[" not in code]
    return [shlex.split(line, comments=True) for line in lines]


def test_every_command_of_the_readme_parses() -> None:
    seen = set()
    for words in commands():
        script = next(word for word in words if "scripts" in word)
        name = Path(script).stem if script.endswith(".sh") else script.rpartition(".")[2]
        rest = words[words.index(script) + 1 :]
        if name == "train_stage_1":
            parse_preset(STAGE_1, rest, name)
        elif name == "train_stage_2":
            parse_preset(STAGE_2, rest, name)
        elif name == "benchmark":
            parse(BenchmarkCfg, rest, name, flags=True)
        elif name == "generate_masks":
            parse(GenerateCfg, rest, name)
        elif name == "evaluate":
            parse(EvaluateCfg, rest, name)
        elif name == "export":
            parse(ExportCfg, rest, name)
        elif name == "check_data":
            parse(CheckDataCfg, rest, name)
        elif name == "import_autoencoder":
            parse_preset(IMPORTS, rest, name)
        elif name == "report":
            parse(ReportCfg, rest, name)
        elif name == "caption_masks":
            parse(CaptionMasksCfg, rest, name)
        elif name == "make_shards":
            assert parse_preset(MAKE_SHARDS, rest, name)[1].out
        elif name == "quickstart" and rest:
            parse(QuickstartCfg, rest, name)
        elif name == "demo":
            parse(DemoCfg, rest, name)
        elif name == "bakeoff":
            assert parse(BakeoffCfg, rest, name).plan in PLANS
        else:
            assert (ROOT / script).exists()
        seen.add(name)
    assert {"quickstart", "test", "train_stage_1", "train_stage_2", "generate_masks", "evaluate", "benchmark"} <= seen


def test_every_preset_is_valid_and_the_readme_names_it() -> None:
    assert STAGE_1.keys() == STAGE_2.keys()
    for name in STAGE_1:
        STAGE_1[name]()
        STAGE_2[name]()
        assert f"`{name}`" in TEXT


def test_files_that_the_readme_links_exist() -> None:
    for target in re.findall(r"\]\(([^)h][^)]*)\)", TEXT):
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
