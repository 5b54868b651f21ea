"""What samplers assume about a network and a batch of prompts, and the row arithmetic that they share."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

C = TypeVar("C", bound="Cond")
Randn = Callable[[Tensor], Tensor]  # noise of the shape, dtype and device of its argument


class Net(Protocol):
    """A backbone, its EMA twin, a guided network, or a test's closed form."""

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Any) -> Tensor:
        """``x`` [B,C,h,w], ``t`` [B], ``dt`` [B] -> [B,C,h,w]."""
        ...


class Cond(Protocol):
    """A batch of prompts, one row each."""

    def drop(self: C, rows: Tensor) -> C:
        """Empty the prompts of ``rows`` [B] bool."""
        ...

    def repeat(self: C, n: int) -> C:
        """The whole batch ``n`` times over, as in ``torch.cat([c] * n)``."""
        ...

    def guided(self: C, w: float | Tensor) -> C:
        """The same prompts, to be answered under guidance strength ``w``: one number, or one per row [B]."""
        ...

    def same(self) -> Tensor:
        """[B,B] bool: rows i and j have the same prompt, or both none."""
        ...

    def __getitem__(self: C, rows: slice | Tensor) -> C: ...

    def concat(self: C, other: C) -> C: ...


def beside(value: Tensor, x: Tensor) -> Tensor:
    """``value`` on the device of ``x``, without waiting for what a GPU has yet to do."""
    return value.to(x.device, non_blocking=x.is_cuda)


def spread(value: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B,1,1,1], in the dtype and on the device of ``x`` [B,C,h,w]."""
    return beside(value.to(x.dtype), x).view(-1, *[1] * (x.ndim - 1))


def filled(value: float, x: Tensor) -> Tensor:
    """``value`` for each row of ``x`` [B,C,h,w]: [B], never narrower than float32, where 127/128 is still exact."""
    return torch.full((len(x),), value, dtype=time_dtype(x), device=x.device)


def time_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def all_rows(x: Tensor) -> Tensor:
    """[B] bool, all True."""
    return torch.ones(len(x), dtype=torch.bool, device=x.device)
