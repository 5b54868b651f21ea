"""Memory and work of networks from 4M to 1B parameters: ``python -m scripts.scaling [--out docs/scaling.md]``.

Nothing is trained: networks are made on torch's meta device, where tensors have shapes and no values.
tests/test_cost.py checks the counts against real steps of small ones. ``--measure UNet-S --rows 8`` takes a real
forward and backward pass here, without and with activation checkpointing, and prints the memory that each needed.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.backbone_cfg import DiTCfg, UNetCfg
from configs.checks import positive, require
from configs.cli import parse
from configs.presets import ICON_UNET, LONG_TRAJECTORY, SMALL_UNET
from scripts.run import refuse_kindly

if TYPE_CHECKING:
    import torch

MARK = "<!-- table -->\n"  # what comes after it is written anew
FEATURES, TOKENS, TEXT_WIDTH = 384, 16, 128
GPU_BYTES = 80e9
GPU_SPEED = 0.35 * 989e12
"""Operations per second that a training is taken to reach: an assumption, 35 % of an H100's bf16 peak."""
SAMPLES = 50e6
"""Masks of a whole training, all epochs together."""
PATHS = LONG_TRAJECTORY.share / LONG_TRAJECTORY.per_path * (1 - LONG_TRAJECTORY.begin)
TEACHER = PATHS * LONG_TRAJECTORY.nodes * 2
"""Forward passes of the teacher per training row, on average over a training; with guidance each node asks two."""


@dataclass(frozen=True)
class Size:
    """A network, and the masks that it is for."""

    name: str
    image_size: int
    factor: int
    """Pixels per latent pixel."""
    backbone: UNetCfg | DiTCfg
    batch: int
    """Masks per process and step."""


SIZES = (
    Size("animals-tiny", 32, 4, SMALL_UNET, 512),
    Size("icons", 64, 4, ICON_UNET, 1024),
    Size("UNet-S", 128, 4, UNetCfg(width=128, multipliers=(1, 2, 3), blocks=2, attention_sizes=(8,)), 256),
    Size("UNet-M", 256, 8, UNetCfg(width=192, multipliers=(1, 2, 4), blocks=2, attention_sizes=(8, 16)), 128),
    Size("DiT-L", 512, 8, DiTCfg(width=1024, depth=20, head_channels=64, patch_size=2), 32),
    Size("DiT-XL", 1024, 8, DiTCfg(width=1536, depth=24, head_channels=64, patch_size=4), 24),
)


@dataclass(frozen=True)
class ScalingCfg:
    """Where the table goes, or which network is measured."""

    out: str = ""
    """Markdown file to write; empty: the table is only printed."""
    measure: str = ""
    """Name of a network of the table: take a pass of it here, and print its memory in place of the table."""
    rows: int = 8
    """Masks of that pass."""

    def __post_init__(self) -> None:
        names = [size.name for size in SIZES]
        require(not self.measure or self.measure in names, "measure", self.measure, f"one of {', '.join(names)}")
        positive("rows", self.rows)


@dataclass(frozen=True)
class Cost:
    """What one network asks for."""

    parameters: int
    forward: float
    """Floating-point operations of one answer, per mask."""
    step: float
    """Those of a training step, per mask: forward, backward and the teacher's share."""
    state: int
    """Bytes of what lives through the training, in fp32: weights, gradients, AdamW's two moments, two averages."""
    activations: float
    """Bytes that the forward pass keeps for the backward pass, per mask, in fp32, attention scores among them."""


def cost(backbone: UNetCfg | DiTCfg, latent: tuple[int, int, int], device: str = "meta", rows: int = 2) -> Cost:
    """Count a forward and a backward pass on a device; on "meta" nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from models import build_backbone
    from models.text import Condition

    kept: dict[int, torch.Tensor] = {}  # storage -> a tensor in it, held so that the storage is not used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device(device):
        net = build_backbone(backbone, latent, FEATURES, TEXT_WIDTH)
        cond = Condition(torch.zeros(rows, TOKENS, FEATURES), torch.ones(rows, TOKENS, dtype=torch.bool))
        inputs: tuple[Any, ...] = (torch.zeros(rows, *latent), torch.zeros(rows), torch.zeros(rows), cond)
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        answer = net(*inputs)
        forward = counter.get_total_flops()
        answer.sum().backward()
    parameters = sum(parameter.numel() for parameter in net.parameters())
    activations = sum(t.untyped_storage().nbytes() for storage, t in kept.items() if storage not in own)
    step = counter.get_total_flops() + TEACHER * forward
    return Cost(parameters, forward / rows, step / rows, 6 * 4 * parameters, activations / rows)


def strategy(needed: float, state: int) -> str:
    """What a process of GPU_BYTES needs: a copy in each, or shares of it."""
    if needed < GPU_BYTES:
        return "ddp"
    processes = next((n for n in (2, 4, 8) if needed - state * (1 - 1 / n) < GPU_BYTES), 0)
    return f"fsdp from {processes} GPUs, hybrid beyond a machine" if processes else "smaller batches (accumulate)"


def table() -> str:
    """The sizes as Markdown."""
    lines = [
        "| network | masks | parameters | answer, GFLOP | step, GFLOP per mask | weights and optimiser | "
        "activations per mask, bf16 | with checkpointing | batch per GPU, all memory | strategy | GPU hours |",
        "|" + "---|" * 11,
    ]
    for size in SIZES:
        side = size.image_size // size.factor
        found = cost(size.backbone, (4, side, side))
        activations = found.activations / 2
        fewer = cost(replace(size.backbone, checkpointing=True), (4, side, side)).activations / 2
        needed = found.state + size.batch * activations
        hours = found.step * SAMPLES / GPU_SPEED / 3600
        lines.append(
            f"| {size.name} | {size.image_size} px, latent {side} | {found.parameters / 1e6:.1f} M "
            f"| {found.forward / 1e9:.2f} | {found.step / 1e9:.2f} | {found.state / 1e9:.2f} GB "
            f"| {activations / 1e6:.1f} MB | {fewer / 1e6:.1f} MB | {size.batch}: {needed / 1e9:.1f} GB "
            f"| {strategy(needed, found.state)} | {hours:.{1 if hours >= 1 else 2}f} |"
        )
    return "\n".join(lines)


def resident() -> int:
    """The most memory that this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def real_pass(backbone: UNetCfg | DiTCfg, latent: tuple[int, int, int], rows: int) -> tuple[int, float]:
    """Bytes that a forward and a backward pass in fp32 need on top of weights and gradients, and its seconds.

    On a GPU as torch's allocator tells, else as the operating system does; then in a process of its own.
    """
    import torch

    from models import build_backbone
    from models.text import Condition

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build_backbone(backbone, latent, FEATURES, TEXT_WIDTH).to(device)

    def step(count: int) -> None:
        with device:
            cond = Condition(torch.zeros(count, TOKENS, FEATURES), torch.ones(count, TOKENS, dtype=torch.bool))
            net(torch.randn(count, *latent), torch.rand(count), torch.rand(count), cond).square().mean().backward()

    step(1)  # gradients are there, kernels are loaded
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else resident()
    begin = time.perf_counter()
    step(rows)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return (torch.cuda.max_memory_allocated() if device.type == "cuda" else resident()) - before, seconds


def measured(name: str, rows: int) -> str:
    """One network, without and with checkpointing."""
    size = next(size for size in SIZES if size.name == name)
    side = size.image_size // size.factor
    lines = []
    for checkpointing in (False, True):
        backbone = replace(size.backbone, checkpointing=checkpointing)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            needed, seconds = pool.apply(real_pass, (backbone, (4, side, side), rows))
        how = "with" if checkpointing else "without"
        lines.append(f"{name}, {rows} masks, {how} checkpointing: {needed / 1e6:,.0f} MB on top of weights and "
                     f"gradients, {seconds:.2f} s")  # fmt: skip
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    cfg: ScalingCfg = parse(ScalingCfg, argv, "python -m scripts.scaling")
    with refuse_kindly("scaling"):
        run(cfg)


def run(cfg: ScalingCfg) -> None:
    """Print what is asked for, and write the table."""
    if cfg.measure:
        print(measured(cfg.measure, cfg.rows))
        return
    text = table()
    print(text)
    if cfg.out:
        path = Path(cfg.out)
        head = path.read_text(encoding="utf-8").partition(MARK)[0] if path.exists() else ""
        path.write_text(f"{head}{MARK}{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
