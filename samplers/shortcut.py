"""Shortcut flow matching (Frans et al., ICLR 2025, arXiv 2410.12557), with its grid and its smallest step set right.

The network also learns the average velocity over steps ``dt > 0``: one step must equal two half steps. The paper's
equation 4 prints the second half step at time t; it has to be, and in the authors' code is, at t + dt/2.
"""

import math
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from configs.diffusion_cfg import SamplerCfg, ShortcutCfg
from samplers.base import Targets
from samplers.flow import FlowMatching, interpolate
from samplers.guidance import TailGuided
from samplers.net import Net, spread, time_dtype

Step = TypeVar("Step", float, Tensor)


class Shortcut(FlowMatching):
    """Flow rows learn the velocity at ``dt = 0``; consistency rows learn steps ``dt`` from two steps of ``dt / 2``."""

    name: ClassVar[str] = "shortcut"
    drives: ClassVar[type[SamplerCfg]] = ShortcutCfg
    answers: ClassVar[str] = "the average velocity over any step dt on the straight path x_t = (1 - t) noise + t mask"
    cfg: ShortcutCfg

    def __init__(self, cfg: ShortcutCfg) -> None:
        super().__init__(cfg)
        self.velocity_guidance = cfg.train_guidance

    def targets(self, x1: Tensor, cond: Any, teacher: Net, step: int = 0) -> Targets:
        if len(x1) == 1:  # one row serves both ends, since either alone would never train the other
            x1, cond = x1.repeat(2, *[1] * (x1.ndim - 1)), cond.repeat(2)
        return super().targets(x1, cond, teacher, step)

    def draw(self, x1: Tensor, cond: Any, teacher: Net, step: int) -> Targets:
        # Small teacher batches cost nearly as much as larger ones, so the rows of ``every`` steps are drawn at once.
        if step % self.cfg.every:
            return super().draw(x1, cond, teacher, step)
        batch, share = len(x1), self.cfg.share * self.cfg.every
        rows = min(max(1, round(share * batch)), batch - 1)
        x_t, t, dt, u, parts = self.consistency_rows(x1[:rows], cond[:rows], teacher)
        x_flow, t_flow, velocity = self.flow_rows(x1[rows:])
        # Whatever the rounding of ``rows``, this loss is share * mean(consistency) + (1 - share) * mean(flow).
        on_consistency = self.cfg.consistency_weight * share * batch / rows
        on_flow = (1 - share) * batch / (batch - rows)
        return Targets(
            x=torch.cat([x_t, x_flow]),
            t=torch.cat([t, t_flow]),
            dt=torch.cat([dt, torch.zeros_like(t_flow)]),
            cond=cond,
            y=torch.cat([u, velocity]),
            weight=torch.cat([torch.full_like(t, on_consistency), torch.full_like(t_flow, on_flow)]),
            parts={**parts, "flow": slice(rows, batch)},
        )

    def consistency_rows(
        self, x1: Tensor, cond: Any, teacher: Net
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, slice]]:
        """Points, times, steps, average velocities, and the rows of each step size."""
        t, dt, parts = self.continuum(len(x1)) if self.cfg.continuous else self.ladder(len(x1))
        asked = self.query(dt / 2)
        grounded = int((asked == 0).sum())  # the last rows; counted on the CPU, so the device need not be waited for
        t, dt, asked = (value.to(time_dtype(x1)).to(x1.device) for value in (t, dt, asked))
        half = dt / 2
        guided = TailGuided(teacher, self.cfg.train_guidance, grounded)  # longer steps inherit the guidance
        x_t = interpolate(torch.randn_like(x1), x1, t)
        first = guided(x_t, t, asked, cond)
        x_mid = x_t + spread(half, x_t) * first.to(x_t.dtype)
        second = guided(x_mid, t + half, asked, cond)
        return x_t, t, dt, ((first + second) / 2).to(x_t.dtype), parts  # Frans et al. 2025, eq. 4 and 5

    def ladder(self, rows: int) -> tuple[Tensor, Tensor, dict[str, slice]]:
        """Steps 1, 1/2 ... 2/grid from times that are multiples of them: float64 [rows], longest steps first.

        Levels follow each other around a circle from a random start, so each is equally likely in any batch, and all
        of them are there from ``levels`` rows on (the authors' code leaves small batches with the one-step level only).
        """
        levels = int(math.log2(self.cfg.grid))
        start = int(torch.randint(levels, ()))
        level = ((torch.arange(rows) + start) % levels).sort().values
        dt = 0.5 ** level.double()
        t = dt * torch.floor(torch.rand(rows, dtype=torch.float64) / dt)
        parts = {"consistency": slice(0, rows)}
        if rows >= levels:  # reported by level only where all are there: ranks that log different names wait forever
            ends = torch.bincount(level, minlength=levels).cumsum(0).tolist()
            bounds = enumerate(pairwise([0, *ends]))
            parts |= {f"consistency_d{2**j}": slice(first, end) for j, (first, end) in bounds}
        return t, dt, parts

    def continuum(self, rows: int) -> tuple[Tensor, Tensor, dict[str, slice]]:
        """Real-valued times and steps: float64 [rows], longest steps first.

        Without an atom the one-step query (0, 1) would be a corner that no draw ever hits.
        """
        wanted = self.cfg.one_step_atom * rows
        ones = math.floor(wanted + float(torch.rand(())))  # right on average in any batch
        t = torch.rand(rows - ones, dtype=torch.float64)
        dt = torch.rand_like(t) * (1 - t)
        order = dt.argsort(descending=True)
        t, dt = torch.cat([t.new_zeros(ones), t[order]]), torch.cat([t.new_ones(ones), dt[order]])
        parts = {"consistency": slice(0, rows)}
        if wanted >= 1:
            parts["consistency_d1"] = slice(0, ones)
        return t, dt, parts

    def query(self, step: Step) -> Step:
        """Steps up to 1/grid are asked as ``dt = 0``, which the flow rows train; the rest as they are."""
        return step * (step > (1 + 1e-6) / self.cfg.grid)
