"""Shortcut flow matching (Frans et al., ICLR 2025, arXiv 2410.12557), with its grid and its smallest step set right.

The network also learns the average velocity over steps ``dt > 0``: one step must equal two half steps. The paper's
equation 4 prints the second half step at time t; it has to be, and in the authors' code is, at t + dt/2.
"""

import math
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from configs.sampler_cfg import SamplerCfg, ShortcutCfg
from samplers.base import START, When
from samplers.flow_map import FlowMap, Jumps, Step, or_velocity, two_part
from samplers.net import Net


class Shortcut(FlowMap):
    """Consistency rows learn steps ``dt`` from two steps of ``dt / 2``."""

    name: ClassVar[str] = "shortcut"
    drives: ClassVar[type[SamplerCfg]] = ShortcutCfg
    cfg: ShortcutCfg

    def average_velocity(self, jumps: Jumps, teacher: Net, when: When) -> Tensor:
        half = jumps.dt / 2
        asked = self.query(half)
        first = self.ask(teacher, jumps.x_t, jumps.t, asked, jumps)
        return two_part(  # Frans et al. 2025, eq. 4 and 5
            jumps.x_t, jumps.dt, torch.full_like(half, 0.5), first,
            lambda x: self.ask(teacher, x, jumps.t + half, asked, jumps),
        )

    def lengths(self, rows: int, when: When) -> tuple[Tensor, Tensor, dict[str, slice]]:
        return super().lengths(rows, when) if self.cfg.continuous else self.ladder(rows, when)

    def ladder(self, rows: int, when: When = START) -> tuple[Tensor, Tensor, dict[str, slice]]:
        """Steps 1, 1/2 ... 2/grid from times that are multiples of them: float64 [rows], longest steps first.

        Levels follow each other around a circle from a random start, so each is equally likely in any batch, and all
        of them are there from ``levels`` rows on (the authors' code leaves small batches with the one-step level only).
        """
        levels = int(math.log2(self.cfg.grid))
        longest = levels - self.open_levels(levels, when)
        count = levels - longest
        start = int(torch.randint(count, ()))
        level = longest + (torch.arange(rows) + start) % count
        if self.cfg.ladder_bias > 0:
            level = torch.where(torch.rand(rows) < self.cfg.ladder_bias, longest, level)
        level = level.sort().values
        dt = 0.5 ** level.double()
        t = dt * torch.floor(torch.rand(rows, dtype=torch.float64) / dt)
        parts = {"consistency": slice(0, rows)}
        if rows >= count and self.cfg.ladder_bias == 0:
            # reported by level only where all are there: ranks that log different names wait forever
            ends = torch.bincount(level - longest, minlength=count).cumsum(0).tolist()
            bounds = enumerate(pairwise([0, *ends]))
            parts |= {f"consistency_d{2 ** (j + longest)}": slice(first, end) for j, (first, end) in bounds}
        return t, dt, parts

    def open_levels(self, levels: int, when: When) -> int:
        """How many levels are trained so far, the shortest steps first."""
        if self.cfg.curriculum == 0:
            return levels
        return max(1, min(levels, math.ceil(levels * when.progress / self.cfg.curriculum)))

    def query(self, step: Step) -> Step:
        return or_velocity(step, self.cfg.grid)
