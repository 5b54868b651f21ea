"""The pages: their commands parse, their examples work as printed, their error texts are those of the code."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_2
from PIL import Image
from test_readme import commands_of, parse_command
from torch import nn

from autoencoder import AutoencoderModule
from configs import bakeoffs
from configs.backbone_cfg import BackboneCfg
from configs.bakeoffs import PLANS
from configs.data_cfg import DataCfg
from configs.sampler_cfg import FlowMapCfg
from data.images import read_mask
from data.masks import MaskSet
from data.sources import LOADERS, Loader, load_splits
from diffusion import DiffusionModule
from models import BACKBONES
from models.backbone import Backbone
from models.blocks import ResBlock
from samplers import SAMPLERS
from samplers.flow_map import FlowMap
from samplers.net import spread
from scripts.figures import FIGURES, draw_all, end, velocity

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
OTHERS = [ROOT / "README.md", ROOT / "container/README.md", ROOT / "models/shipped/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for words in commands_of(text):
        if words[0] in ("bash", ".venv/bin/python") and any("scripts" in word for word in words):
            parse_command(words)
    for target in re.findall(r"\]\(([^)#h][^)#]*)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_take_the_environment_of_the_project_and_leave_no_pattern_to_the_shell(page: Path) -> None:
    text = page.read_text()
    codes = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()]
    codes += re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    for code in codes:
        assert not re.search(r"(^|&& |; |\| )\s*(pip|pytest|tensorboard|python -m scripts\S*) ", code), code
        assert not re.search(r"\{\d+\.\.\d+\}", re.sub(r"'[^']*'|\"[^\"]*\"", "", code)), code


def anchors(page: Path) -> set[str]:
    """What a link may name behind its # : the page's headings as GitHub writes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_into_pages_name_headings_that_are_there(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors((page.parent / target) if target else page), f"{target}#{anchor}"


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


@pytest.fixture
def tables() -> Iterator[None]:
    tables: Any = (BACKBONES, LOADERS, SAMPLERS, PLANS)
    before = [dict(table) for table in tables]
    yield
    for table, own in zip(tables, before, strict=True):
        table.clear()
        table.update(own)


def test_the_objective_of_the_page_trains_draws_and_enters_a_comparison(
    tables: None, tiny_autoencoder: AutoencoderModule
) -> None:
    names = vars(bakeoffs) | {
        "dataclass": dataclass, "FlowMapCfg": FlowMapCfg, "FlowMap": FlowMap, "spread": spread, "SAMPLERS": SAMPLERS,
        "__name__": __name__,
    }  # fmt: skip
    objective, plan = examples("extending.md")[:2]
    exec(objective, names)
    exec(plan, names)
    entrants = PLANS["mine"]()
    assert set(entrants) == {"flow", "halves"}
    cfg = replace(TINY_2, sampler=entrants["halves"].stage_2.sampler)
    module = DiffusionModule(cfg, tiny_autoencoder.eval().requires_grad_(False))
    torch.nn.init.normal_(module.teacher.conv_out.weight, std=0.05)
    x1 = torch.randn(8, *module.latent_shape)
    loss, parts = module.sampler.loss(module.net, x1, module.encode_text(["a cat"] * 8), teacher=module.teacher)
    loss.backward()
    assert parts["consistency"] > 0
    assert module.generate(["a cat", ""], torch.randn(2, *module.latent_shape), steps=1).shape == (2, 1, 32, 32)


def test_the_loaded_model_of_the_page_draws_what_it_is_asked_for() -> None:
    names: dict[str, Any] = {}
    exec(examples("export.md")[0], names)
    assert len(names["masks"]) == 8
    assert all(p.shape == (1, 64, 64) and p.max() > 0.5 for p in names["masks"])


def test_the_network_of_the_page_trains_and_draws(tables: None, tiny_autoencoder: AutoencoderModule) -> None:
    names = {"dataclass": dataclass, "BackboneCfg": BackboneCfg, "Backbone": Backbone, "nn": nn, "ResBlock": ResBlock,
             "BACKBONES": BACKBONES, "__name__": __name__}  # fmt: skip
    source = examples("extending.md")[2]
    assert len(source.splitlines()) <= 25
    exec(source, names)
    cfg = replace(TINY_2, backbone=names["ConvCfg"](width=32, depth=2))  # type: ignore[operator]  # made by exec
    module = DiffusionModule(cfg, tiny_autoencoder.eval().requires_grad_(False))
    x1 = torch.randn(8, *module.latent_shape)
    loss, _ = module.sampler.loss(module.net, x1, module.encode_text(["a cat"] * 8), teacher=module.teacher)
    loss.backward()
    assert all(p.grad is not None for p in module.net.parameters())
    assert module.generate(["a cat", ""], torch.randn(2, *module.latent_shape), steps=1).shape == (2, 1, 32, 32)


def test_the_data_set_of_the_page_is_split_and_holds_what_its_prompts_say(tables: None) -> None:
    names = {"dataclass": dataclass, "np": np, "MaskSet": MaskSet, "LOADERS": LOADERS, "Loader": Loader,
             "__name__": __name__}  # fmt: skip
    exec(examples("extending.md")[3], names)
    train, held_out = load_splits(DataCfg(names["DiscSource"](200)))  # type: ignore[operator]  # made by exec
    assert len(train) > len(held_out) > 5
    for masks in (train, held_out):
        area = masks.images.mean((1, 2))
        large = np.array(masks.prompts) == "a large disc"
        assert area[large].min() > area[~large].max() > 0


def test_the_lines_of_the_page_invert_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dark = np.full((8, 9), 255, np.uint8)
    dark[2:4, 3:6] = 0
    (tmp_path / "dark_on_white").mkdir()
    Image.fromarray(dark).save(tmp_path / "dark_on_white" / "a.png")
    monkeypatch.chdir(tmp_path)
    exec(examples("own-data.md")[0], {})
    assert (read_mask(tmp_path / "my_masks" / "a.png") == (dark == 0)).all()


def test_the_lines_of_the_page_take_label_images_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((20, 30), np.uint16)
    labels[2:6, 3:9], labels[10:15, 20:22], labels[5:8, 8:12] = 1, 300, 2
    (tmp_path / "label_images").mkdir()
    Image.fromarray(labels).save(tmp_path / "label_images" / "field.tif")
    monkeypatch.chdir(tmp_path)
    exec(examples("own-data.md")[1], {})
    made = {path.name: read_mask(path) for path in sorted((tmp_path / "my_masks").iterdir())}
    assert {name: (mask.shape, mask.sum()) for name, mask in made.items()} == {
        "field-1.png": ((128, 128), 23), "field-2.png": ((128, 128), 12), "field-300.png": ((128, 128), 10),
    }


def test_every_error_text_of_the_page_is_one_of_the_code() -> None:
    code = "".join(path.read_text() for pattern in ("*.py", "[c-s]*/**/*.py") for path in ROOT.glob(pattern)
                   if ".venv" not in path.parts)  # fmt: skip
    joined = re.sub(r'"\s*\n\s*f?"', "", code)  # sentences that are written on several lines
    rows = [line for line in (ROOT / "docs/troubleshooting.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 20
    for row in rows:
        for text in re.findall(r"`([^`]+)`", row.split("|")[1]):
            assert text in joined, text


def test_each_objective_is_explained_with_a_figure_that_the_command_draws(tmp_path: Path) -> None:
    text = (ROOT / "docs/objectives.md").read_text()
    names = {sampler.name for sampler in SAMPLERS.values()}
    assert set(FIGURES) == names
    for path in draw_all(tmp_path):
        assert path.stat().st_size > 1000
        assert f"(figures/{path.name})" in text
        assert (ROOT / "docs/figures" / path.name).exists()


def test_the_figures_paths_end_at_the_data_and_their_velocity_is_the_mean_over_pairs() -> None:
    for x in (-1.5, -0.2, 0.3, 2.0):
        assert abs(abs(end(0.0, x, 1.0)[1]) - 1) < 0.5
    draw = np.random.default_rng(0)
    noise, spread = draw.standard_normal((2, 2_000_000))
    x1 = draw.choice([-1, 1], 2_000_000) + 0.12 * spread
    for t, x in ((0.3, -0.4), (0.7, 0.5)):
        near = abs((1 - t) * noise + t * x1 - x) < 0.01
        assert (x1 - noise)[near].mean() == pytest.approx(velocity(t, x), abs=0.05)


def test_the_citation_can_be_read() -> None:
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert about["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= about.keys()
