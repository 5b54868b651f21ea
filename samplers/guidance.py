"""Classifier-free guidance (Ho & Salimans 2022): a network wrapped around a network, and when to wrap it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.checks import fraction, require
from samplers.net import Net, all_rows, spread

ROUNDING = 1e-9  # of times: a step that begins at 0.2 is one from 0.2 on, also if it was computed


@dataclass(frozen=True)
class Guidance:
    """How strongly a generation follows its prompt, and on which part of the way.

    Raises:
        ConfigError: an interval that is empty or leaves 0 to 1, or a share that is no share.
    """

    scale: float | Tensor = 1.0
    """1 follows the prompt as learned, 0 ignores it; one number, or one per row [B]."""
    start: float = 0.0
    """Steps that begin before this time are not guided (Kynkaanniemi et al. 2024)."""
    stop: float = 1.0
    """Nor are those that begin at or after this time."""
    cfg_zero: bool = False
    """Scale the answer without prompt to be as near as it can to the one with it (see ``optimal_scale``)."""
    zero_init: float = 0.0
    """Share of the steps, from the first on, whose velocity is taken as zero (zero-init of Fan et al. 2025)."""
    negative: Any = None
    """Prompts, one for each row, to stay away from: what guidance subtracts in the place of no prompt."""

    def __post_init__(self) -> None:
        require(0 <= self.start < self.stop <= 1, "guidance interval", (self.start, self.stop), "rising, from 0 to 1")
        fraction("zero_init", self.zero_init, below_one=True)

    def inside(self, t: float) -> bool:
        """Whether a step that begins at ``t`` is guided."""
        return self.start <= t + ROUNDING < self.stop

    def at(self, t: float) -> float | Tensor:
        """The scale for a step that begins at ``t``."""
        return self.scale if self.inside(t) else 1.0

    def still_steps(self, steps: int) -> int:
        """How many of the steps do not move: never more than the share, so never the last one."""
        return math.floor(self.zero_init * steps + 1e-9)


@dataclass(frozen=True)
class Guided:
    """A network whose answer is ``u_null + scale * (u_cond - u_null)``; ``u_null`` is asked without prompt.

    Both halves are one batched call on the same ``x``, ``t`` and ``dt``, so that their difference is due to the prompt
    alone. A scale of exactly 1 or 0 needs one half only and calls no more than that (``cfg_zero`` needs both at 0).

    Args:
        net: network to guide.
        scale: one number, or one per row ``[B]``.
        cfg_zero: multiply ``u_null`` by ``optimal_scale`` first.
        negative: prompts to ask ``u_null`` with, one for each row, in the place of none (Liu et al. 2022, arXiv
            2206.01714, section 3.2, as is usual for image generators).
    """

    net: Net
    scale: float | Tensor
    cfg_zero: bool = False
    negative: Any = None

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Any) -> Tensor:  # x [B,C,h,w], t [B], dt [B]
        if not isinstance(self.scale, Tensor) and self.scale == 1:
            return self.net(x, t, dt, cond)
        if not isinstance(self.scale, Tensor) and self.scale == 0 and not self.cfg_zero:
            return self.net(x, t, dt, self.null(x, cond))
        u_cond, u_null = self.halves(x, t, dt, cond)
        if self.cfg_zero:
            u_null = u_null * spread(optimal_scale(u_cond, u_null), u_null)
        return mix(u_cond, u_null, self.scale)

    def halves(self, x: Tensor, t: Tensor, dt: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        """Answers with and without the prompt: [B,C,h,w] twice."""
        both = cond.concat(self.null(x, cond))
        u_cond, u_null = self.net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([dt, dt]), both).chunk(2)
        return u_cond, u_null

    def null(self, x: Tensor, cond: Any) -> Any:
        """What guidance leads away from."""
        return cond.drop(all_rows(x)) if self.negative is None else self.negative


@dataclass(frozen=True)
class Asked:
    """A network that takes guidance as an input, asked with this much of it."""

    net: Net
    scale: float | Tensor

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Any) -> Tensor:  # x [B,C,h,w], t [B], dt [B]
        return self.net(x, t, dt, cond.guided(self.scale))


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


def optimal_scale(u_cond: Tensor, u_null: Tensor) -> Tensor:
    """The factor [B] that brings each row of ``u_null`` nearest to ``u_cond`` [B,C,h,w], after Fan et al. 2025."""
    wide = torch.promote_types(u_null.dtype, torch.float32)
    cond, null = u_cond.to(wide).flatten(1), u_null.to(wide).flatten(1)  # [B,C*h*w]
    return (cond * null).sum(1) / null.square().sum(1).clamp(min=torch.finfo(wide).tiny)
