"""Classifier-free guidance (Ho & Salimans 2022): a network wrapped around a network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.net import Net, all_rows, spread


@dataclass(frozen=True)
class Guided:
    """A network whose answer is ``u_null + scale * (u_cond - u_null)``.

    Both halves are one batched call on the same ``x``, ``t`` and ``dt``, so that their difference is due to the prompt
    alone. A scale of exactly 1 or 0 needs one half only and calls no more than that.

    Args:
        net: network to guide.
        scale: one number, or one per row ``[B]``.
    """

    net: Net
    scale: float | Tensor

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Any) -> Tensor:  # x [B,C,h,w], t [B], dt [B]
        if not isinstance(self.scale, Tensor) and self.scale == 1:
            return self.net(x, t, dt, cond)
        if not isinstance(self.scale, Tensor) and self.scale == 0:
            return self.net(x, t, dt, cond.drop(all_rows(x)))
        return mix(*self.halves(x, t, dt, cond), self.scale)

    def halves(self, x: Tensor, t: Tensor, dt: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        """Answers with and without the prompt: [B,C,h,w] twice."""
        second_half = torch.arange(2 * len(x), device=x.device) >= len(x)
        both = cond.repeat(2).drop(second_half)
        u_cond, u_null = self.net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([dt, dt]), both).chunk(2)
        return u_cond, u_null


@dataclass(frozen=True)
class RowGuided:
    """A network that guides only the rows ``rows`` [R] of its batch, still in one call of ``B + R`` rows.

    A scale per row [B] is also the guidance that the prompts carry as an input; guided rows are asked without it.
    """

    net: Net
    scale: float | Tensor
    rows: Tensor

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Any) -> Tensor:  # x [B,C,h,w], t [B], dt [B]
        rows, per_row = self.rows, isinstance(self.scale, Tensor)
        if len(rows) == 0 or (not per_row and self.scale == 1):
            return self.net(x, t, dt, cond)
        scale = self.scale
        if isinstance(scale, Tensor):
            cond = cond.guided(scale.index_fill(0, rows, 1.0))
            scale = scale[rows]
        null = cond[rows].drop(all_rows(x[rows]))
        u = self.net(torch.cat([x, x[rows]]), torch.cat([t, t[rows]]), torch.cat([dt, dt[rows]]), cond.concat(null))
        u, u_null = u[: len(x)], u[len(x) :]
        return u.index_copy(0, rows, mix(u[rows], u_null, scale))


def mix(u_cond: Tensor, u_null: Tensor, scale: float | Tensor) -> Tensor:
    """Ho & Salimans 2022, eq. 6, with ``scale = 1 + w``; ``scale`` is a number or ``[B]``."""
    factor = spread(scale, u_cond) if isinstance(scale, Tensor) else scale
    return u_null + factor * (u_cond - u_null)
