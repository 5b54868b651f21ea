"""Graphs for other programs: what they draw is what the model draws, for any number of masks and tokens."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_2

from autoencoder import AutoencoderModule
from configs.checks import ConfigError
from configs.sampler_cfg import DDIMCfg, DDPMCfg
from configs.shipped import checkpoint_path
from diffusion import DiffusionModule
from models.text import locate_encoder
from samplers import build_sampler
from scripts import graphs
from scripts.export import main as export
from scripts.graphs import Drawer, example, write_graph
from scripts.mask_model import load_mask_model

ROOT = Path(__file__).parents[1]
ONNX = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def test_a_drawer_draws_what_generate_draws(tiny_diffusion: DiffusionModule) -> None:
    prompts = ["a heart", "a house with two small windows", ""]
    noise, tokens, keep = example(tiny_diffusion, 3)
    for steps in (1, 3):
        with torch.inference_mode():
            drawn = Drawer(tiny_diffusion, steps)(noise, tokens, keep)
        assert torch.equal(drawn, tiny_diffusion.generate(prompts, noise, steps=steps))


@pytest.mark.slow
@pytest.mark.timeout(900)  # the ONNX exporter is slow on a busy machine
@pytest.mark.parametrize("kind", ["pt2", pytest.param("onnx", marks=pytest.mark.skipif(
    not ONNX, reason="onnx, onnxscript and onnxruntime are not installed (they are optional)"))])
def test_a_graph_answers_as_its_model_in_any_size(kind: str, tiny_diffusion: DiffusionModule, tmp_path: Path) -> None:
    content = {"state_dict": tiny_diffusion.state_dict(), "global_step": 7}
    tiny_diffusion.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    export(["--checkpoint", str(tmp_path / "a.ckpt"), "--format", kind, "--steps", "2"])
    path = tmp_path / f"model.{kind}"
    drawn = graphs.run_onnx(path) if kind == "onnx" else torch.export.load(path).module()
    inputs = example(tiny_diffusion, 2)
    noise, tokens, keep = inputs
    longer = (noise, torch.cat([tokens, torch.randn(2, 5, 384)], 1), torch.cat([keep, torch.ones(2, 5) > 0], 1))
    for given in (inputs, longer, tuple(value[:1] for value in inputs)):
        torch.testing.assert_close(drawn(*given), Drawer(tiny_diffusion, 2)(*given), rtol=0, atol=1e-4)
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert about["rms_error"] <= 3e-5
    assert about["rms_error"] <= about["largest_error"] <= 1e-3
    assert about["inputs"] == {
        "noise": ["masks", 4, 8, 8], "tokens": ["masks", "tokens", 384], "keep": ["masks", "tokens"],
    }
    assert set(about["milliseconds"]["8_masks"]) == {"pytorch", kind}
    if kind == "onnx":  # the example of the page, which knows nothing of this project
        _, source = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.S)
        name = "sentence-transformers/all-MiniLM-L6-v2"
        source = source.replace(name, locate_encoder("all-MiniLM-L6-v2")).replace("heart/model.onnx", str(path))
        names: dict[str, Any] = {}
        exec(source, names)
        noise = torch.from_numpy(names["noise"])
        expected = tiny_diffusion.generate(["a heart", "a large house"], noise, steps=2)
        drawn = torch.from_numpy(names["masks"])
        assert drawn.shape == expected.shape
        assert (drawn == (expected > 0.5))[(expected - 0.5).abs() > 0.01].all()


def replaced_graph(monkeypatch: pytest.MonkeyPatch, drawn: Callable[..., torch.Tensor]) -> None:
    class Other:
        def module(self) -> object:
            return drawn

    monkeypatch.setattr(graphs, "as_program", lambda *args: Other())
    monkeypatch.setattr(torch.export, "save", lambda program, file: file.write(b"a graph"))
    monkeypatch.setattr(torch.export, "load", lambda path: Other())


@pytest.mark.parametrize("wrong", [
    lambda p: torch.full_like(p, 0.25), lambda p: p + 1e-4, lambda p: torch.full_like(p, torch.nan),
    lambda p: torch.cat([p[:-1], p[-1:] + 1e-4]),  # one mask of several
])  # fmt: skip
def test_a_graph_that_answers_something_else_is_an_error(
    wrong: Callable[[torch.Tensor], torch.Tensor], tiny_diffusion: DiffusionModule, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    drawer = Drawer(tiny_diffusion, 1)
    replaced_graph(monkeypatch, lambda *inputs: wrong(drawer(*inputs)))
    said = r"answers something else than the model \(probabilities differ by (0\.\d+|nan) in root mean square\)"
    with pytest.raises(ConfigError, match=said):
        write_graph(tiny_diffusion, tmp_path / "a.pt2", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_pixel_near_the_threshold_that_rounding_moved_is_no_error(
    tiny_diffusion: DiffusionModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawer = Drawer(tiny_diffusion, 1)

    def rounded(*inputs: torch.Tensor) -> torch.Tensor:
        p = drawer(*inputs)
        p[:, :, 3, 5] += 5e-4
        return p

    replaced_graph(monkeypatch, rounded)
    about = write_graph(tiny_diffusion, tmp_path / "a.pt2", 1)
    assert about["largest_error"] == pytest.approx(5e-4, rel=0.01)
    assert about["rms_error"] == pytest.approx(5e-4 / 32, rel=0.01)  # one of 1,024 pixels


@pytest.mark.slow
def test_a_model_whose_pixels_rounding_moves_has_a_graph(tmp_path: Path) -> None:
    """Its largest difference was 2e-4 on two cores of an EPYC."""
    module = load_mask_model(checkpoint_path("icons256"))
    write_graph(module, tmp_path / "a.pt2", 1)
    assert (tmp_path / "a.pt2").is_file()


def test_more_steps_than_a_diffusion_network_has_are_refused(tiny_diffusion: DiffusionModule) -> None:
    tiny_diffusion.sampler = build_sampler(DDIMCfg(timesteps=8, steps=8))
    with pytest.raises(ConfigError, match="at most 8"):
        Drawer(tiny_diffusion, 9)


def test_a_sampler_that_draws_noise_is_refused(tiny_diffusion: DiffusionModule) -> None:
    tiny_diffusion.sampler = build_sampler(DDPMCfg())
    with pytest.raises(ConfigError, match="fresh noise"):
        Drawer(tiny_diffusion, 3)(*example(tiny_diffusion, 1))


@pytest.mark.slow
def test_a_diffusion_network_has_a_graph_unless_its_steps_add_noise(
    tiny_autoencoder: AutoencoderModule, tmp_path: Path
) -> None:
    backbone = replace(TINY_2.backbone, multipliers=(1,), attention_sizes=())  # exporting takes time for each layer
    module = DiffusionModule(replace(TINY_2, backbone=backbone), tiny_autoencoder).eval()
    torch.nn.init.normal_(module.average.conv_out.weight)  # it starts at zero
    module.sampler = build_sampler(DDPMCfg())
    with pytest.raises(ConfigError, match="adds fresh noise in its steps, which a graph cannot hold: train one"):
        write_graph(module, tmp_path / "a.pt2", 3)
    assert not list(tmp_path.iterdir())
    module.sampler = build_sampler(DDIMCfg())
    assert write_graph(module, tmp_path / "a.pt2", 2)["rms_error"] <= 3e-5


def test_missing_packages_and_other_endings_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="needs onnx and onnxscript and onnxruntime: run "):
        graphs.require_packages(".onnx")
    with pytest.raises(SystemExit):
        export(["--checkpoint", "animals", "--format", "onnx", "--out", str(tmp_path / "a.safetensors")])
    assert "ends in .onnx" in " ".join(capsys.readouterr().err.split())  # whose lines break by the length of the path
