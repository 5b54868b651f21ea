"""The optimiser of both stages and their random streams."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from configs.trainer_cfg import OptimCfg
from models.muon import Muon

FEWEST_ROWS = 16
OUTER = {"conv_in", "conv_out", "patch_in", "patch_out", "first", "last", "prompt", "pooled", "time", "step",
         "guidance", "modulation", "modulation_out"}  # fmt: skip


@dataclass(frozen=True)
class Rival:
    """A network that learns against another one, in the same steps."""

    net: nn.Module
    lr: float
    """Peak learning rate."""
    alone: int
    """Steps before the other one begins to learn."""


def schedule(step: int, cfg: OptimCfg, max_steps: int, time_used: float = 0.0) -> float:
    """Learning rate at ``step`` as a share of the peak: linear warm-up, then half a cosine down to ``final_lr``.

    The fall follows the steps, or the share of a time limit that is used if that is further on.
    """
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    progress = min(1.0, max(time_used, (step - cfg.warmup_steps) / max(1, max_steps - cfg.warmup_steps)))
    return cfg.final_lr + (1 - cfg.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    net: nn.Module, cfg: OptimCfg, max_steps: int, time_used: Callable[[], float] = lambda: 0.0,
    rival: Rival | None = None,
) -> dict[str, Any]:
    """AdamW (Loshchilov & Hutter 2019) over the trained parameters of ``net``, in Lightning's form, with its schedule.

    Weight decay is for matrices and filters only: vectors (biases, norms), learned tokens and a lone filter, such as
    the last one of a decoder of masks, have none.
    With ``cfg.muon_lr``, Muon moves what lies between the first and the last layers and is no small matrix.
    ``time_used`` answers the share of a time limit that is over. A ``rival`` learns beside ``net``, by AdamW.
    """
    inner = {name: p for name, p in trained(net).items() if cfg.muon_lr and p.ndim >= 2 and is_inner(name, p)}
    groups = by_decay({name: p for name, p in trained(net).items() if name not in inner}, cfg.weight_decay)
    optimizer: torch.optim.Optimizer
    if cfg.muon_lr:
        groups = [group | {"lr": cfg.lr, "muon": False} for group in groups]
        moved = list(inner.values())
        groups.append({"params": moved, "weight_decay": cfg.weight_decay, "lr": cfg.muon_lr, "muon": True})
    late = 0 if rival is None else rival.alone

    def law(step: int) -> float:
        return 0.0 if step < late else schedule(step - late, cfg, max_steps - late, time_used())

    laws: list[Callable[[int], float]] = [law] * len(groups)
    if rival is not None:
        groups += [group | {"lr": rival.lr} for group in by_decay(trained(rival.net), cfg.weight_decay)]
        laws += [lambda step: schedule(step, cfg, max_steps, time_used())] * 2
    if cfg.muon_lr:
        optimizer = Muon(groups, betas=(cfg.beta1, cfg.beta2))
    else:
        optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, laws)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def by_decay(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and filters of more than one row, with weight decay, and what has none."""
    matrices = {name: p for name, p in parameters.items() if p.ndim >= 2 and p.shape[0] > 1}
    others = [p for name, p in parameters.items() if name not in matrices]
    return [
        {"params": list(matrices.values()), "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0},
    ]  # fmt: skip


def is_inner(name: str, parameter: Tensor) -> bool:
    """Whether Muon suits a matrix or filter of stage 2's networks: not the first and last layers, those of times and
    prompts, few rows, or (large, and as good without) the scales and shifts that times and prompts make."""
    rows = min(len(parameter), parameter.numel() // len(parameter))
    return rows >= FEWEST_ROWS and OUTER.isdisjoint(name.split("."))


@contextmanager
def repeatable(device: torch.device, *numbers: int) -> Iterator[None]:
    """A random stream that depends on ``numbers`` alone (see ``reseed``); the one outside goes on as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        reseed(*numbers)
        yield


def reseed(seed: int, step: int, rank: int, micro_batch: int = 0) -> None:
    """Restart torch's random stream as a function of (seed, step, rank, micro batch).

    Each rank draws its own noise and times, and a resumed training draws what an unbroken one would have drawn.
    """
    mixed = seed
    for number in (step, rank, micro_batch):  # splitmix64-like mixing: neighbours get unrelated streams
        mixed = ((mixed ^ (number + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed ^= mixed >> 31
    torch.manual_seed(mixed % 2**63)
