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
        second_half = torch.arange(2 * len(x), device=x.device) >= len(x)
        both = cond.repeat(2).drop(second_half)
        u_cond, u_null = self.net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([dt, dt]), both).chunk(2)
        return mix(u_cond, u_null, self.scale)


@dataclass(frozen=True)
class TailGuided:
    """A network that guides only the last ``rows`` rows of its batch, still in one call of ``B + rows`` rows."""

    net: Net
    scale: float
    rows: int

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Any) -> Tensor:  # x [B,C,h,w], t [B], dt [B]
        if self.rows == 0 or self.scale == 1:
            return self.net(x, t, dt, cond)
        tail = slice(len(x) - self.rows, len(x))
        null = cond[tail].drop(all_rows(x[tail]))
        u = self.net(torch.cat([x, x[tail]]), torch.cat([t, t[tail]]), torch.cat([dt, dt[tail]]), cond.concat(null))
        plain, u_cond, u_null = u.split([len(x) - self.rows, self.rows, self.rows])
        return torch.cat([plain, mix(u_cond, u_null, self.scale)])


def mix(u_cond: Tensor, u_null: Tensor, scale: float | Tensor) -> Tensor:
    """Ho & Salimans 2022, eq. 6, with ``scale = 1 + w``; ``scale`` is a number or ``[B]``."""
    factor = spread(scale, u_cond) if isinstance(scale, Tensor) else scale
    return u_null + factor * (u_cond - u_null)
