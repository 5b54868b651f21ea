"""Whole graphs from prompts' states to masks, for programs without this project: torch.export and ONNX."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.checks import ConfigError
from configs.whole_file import PREFIX, write_whole
from models.text import Condition
from samplers import Guidance

INPUTS = ("noise", "tokens", "keep")
TOLERANCE = 3e-5
"""Root mean square difference of a mask's probabilities. Rounding alone moves those of the models that come with the
project by up to about 1e-5, and single pixels near the threshold by 1e-3.
"""
OPSET = 20


class Drawer(nn.Module):
    """Text projection, network steps and decoder of a trained model, in fp32 on the CPU.

    noise [B,Cz,h,w] standard normal, tokens [B,L,D] states of the text encoder, keep [B,L] bool (False: padding) ->
    probabilities [B,C,H,W].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: Any, steps: int) -> None:
        super().__init__()
        self.net, self.vae, self.sampler = module.average, module.autoencoder.average, module.sampler
        self.register_buffer("mean", module.autoencoder.latent_mean)
        self.register_buffer("std", module.autoencoder.latent_std)
        try:
            self.grid: list[float] = self.sampler.times(steps).tolist()
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def forward(self, noise: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
        cond = Condition(tokens, keep)
        z = self.sampler.walk(self.sampler.reading(self.net), noise, self.grid, cond, Guidance(), no_noise)
        return self.vae.decode(z * self.std + self.mean).sigmoid()


def no_noise(like: Tensor) -> Tensor:
    raise ConfigError("this sampler adds fresh noise in its steps, which a graph cannot hold: train one that does "
                      "not, such as sampler:ddim")  # fmt: skip


def example(module: Any, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of a :class:`Drawer`, from real prompts of two lengths and one that says nothing."""
    prompts = ["a heart", "a house with two small windows", ""]
    cond = module.encode_text([prompts[row % len(prompts)] for row in range(rows)])
    noise = torch.randn(rows, *module.latent_shape, generator=torch.Generator().manual_seed(rows))
    return noise, cond.tokens, cond.keep


def as_program(drawer: Drawer, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The graph for any number of masks and tokens."""
    rows, tokens = torch.export.Dim("masks"), torch.export.Dim("tokens")
    shapes = {"noise": {0: rows}, "tokens": {0: rows, 1: tokens}, "keep": {0: rows, 1: tokens}}
    with torch.no_grad():
        return torch.export.export(drawer, inputs, dynamic_shapes=shapes, strict=True)


def written(program: torch.export.ExportedProgram, path: Path) -> Callable[..., Tensor]:
    """Write ``path`` (.onnx or .pt2) and read it back: (noise, tokens, keep) -> probabilities."""
    if path.suffix == ".onnx":
        made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, input_names=INPUTS, output_names=["masks"],
                                 verbose=False)  # fmt: skip
        content = made.model_proto.SerializeToString()  # type: ignore[union-attr]  # None without dynamo
        write_whole(path, lambda file: file.write(content))
        return run_onnx(path)
    write_whole(path, lambda file: torch.export.save(program, file))
    return torch.export.load(path).module()


def write_graph(module: Any, path: Path, steps: int) -> dict[str, Any]:
    """Write ``path`` (.onnx or .pt2), read it back, and compare it with the model it was made of.

    Returns:
        What is told beside the file: inputs, errors, and milliseconds of one mask and of eight.

    Raises:
        ModuleNotFoundError: ONNX's packages are missing.
        ConfigError: a sampler that draws noise in its steps, or a graph that answers something else.
    """
    kind = path.suffix
    require_packages(kind)
    drawer = Drawer(module, steps).eval().requires_grad_(False)
    inputs = example(module, 3)
    with torch.no_grad():
        drawer(*inputs)  # what it refuses is said here; inside of torch.export it would be a traceback
    program = as_program(drawer, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{PREFIX}{path.stem}.new{kind}")  # what fails the check never gets the final name
    try:
        drawn = written(program, fresh)
        error = largest = 0.0
        for rows in (1, 5):  # other sizes than that of the example
            inputs = example(module, rows)
            with torch.no_grad():
                apart = (drawn(*inputs) - drawer(*inputs)).flatten(1)
            worst, most = float(apart.square().mean(1).sqrt().max()), float(apart.abs().max())
            if not worst <= TOLERANCE:
                raise ConfigError(f"{path} is not written: its graph answers something else than the model "
                                  f"(probabilities differ by {worst:.2g} in root mean square)")  # fmt: skip
            error, largest = max(error, worst), max(largest, most)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    latency = {
        f"{rows}_masks": {"pytorch": milliseconds(drawer, example(module, rows)),
                          kind.removeprefix("."): milliseconds(drawn, example(module, rows))}
        for rows in (1, 8)
    }  # fmt: skip
    noise, tokens, _ = example(module, 3)
    shapes = {"noise": ["masks", *noise.shape[1:]], "tokens": ["masks", "tokens", tokens.shape[2]],
              "keep": ["masks", "tokens"]}  # fmt: skip
    return {"steps": steps, "inputs": shapes, "rms_error": error, "largest_error": largest,
            "threads": torch.get_num_threads(), "milliseconds": latency}  # fmt: skip


def require_packages(kind: str) -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if kind == ".onnx" and find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"a file for ONNX needs {' and '.join(missing)}: run .venv/bin/python -m pip install "
                                  "onnx onnxscript onnxruntime")  # fmt: skip


def run_onnx(path: Path) -> Callable[..., Tensor]:
    """The graph of a file, run by onnxruntime on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def drawn(*inputs: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return drawn


@torch.no_grad()
def milliseconds(draw: Callable[..., Tensor], inputs: tuple[Tensor, ...], repeats: int = 20) -> float:
    """Median time of one call."""
    found = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        draw(*inputs)
        found.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(found[3:]), 2)
