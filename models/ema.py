"""Exponential moving averages of weights as frozen twin networks."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def frozen_twin(net: Net) -> Net:
    """A copy in eval mode whose parameters take no gradient."""
    return deepcopy(net).eval().requires_grad_(False)


@contextmanager
def cast_once(twin: nn.Module) -> Iterator[None]:
    """Within, autocast casts the weights of a frozen twin at its first call and keeps them for the others.

    It keeps only weights that take a gradient, so here they are said to: the twin's calls must be under ``no_grad``.
    """
    twin.requires_grad_(True)
    try:
        yield
    finally:
        twin.requires_grad_(False)


def warmed_decay(decay: float, step: int) -> float:
    """Decay at optimiser step ``step``: rises from 0.1 to ``decay``, so the twin forgets the first weights soon."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def ema_update_(twin: nn.Module, net: nn.Module, decay: float) -> None:
    """twin <- decay * twin + (1 - decay) * net for every parameter; buffers are copied.

    Elementwise, so that sharded networks (FSDP) need no communication. Both modules must have the same structure.
    """
    mine: list[Tensor] = list(twin.parameters())
    theirs: list[Tensor] = list(net.parameters())
    torch._foreach_lerp_(mine, theirs, 1.0 - decay)
    for own, other in zip(twin.buffers(), net.buffers(), strict=True):
        own.copy_(other)
