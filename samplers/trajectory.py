"""Self-distillation along whole paths: one run of the teacher from noise to mask gives targets for many steps at once.

Targets of the other objectives start from the network's own answers over steps dt > 0, so its errors there come back as
targets. Here only velocities are asked (dt = 0), which the flow rows train. This is knowledge distillation (Luhman &
Luhman 2021, arXiv 2101.02388) from the network's own average, for any two points of a path as in consistency
trajectory models (Kim et al. 2024, arXiv 2310.02279).

A teacher that has learned short jumps can take the path by these instead, and needs few: its long jumps learn from them
as in progressive distillation (Salimans & Ho 2022, arXiv 2202.00512), whose teacher stays as it is, too.
"""

import math
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from configs.sampler_cfg import SamplerCfg, TrajectoryCfg
from samplers.base import When
from samplers.flow_map import FlowMap, Jumps
from samplers.guidance import Guided
from samplers.net import Net, beside, spread


class Trajectory(FlowMap):
    """Consistency rows are pairs of points on paths that the teacher takes from noise to mask."""

    name: ClassVar[str] = "trajectory"
    drives: ClassVar[type[SamplerCfg]] = TrajectoryCfg
    cfg: TrajectoryCfg

    def average_velocity(self, jumps: Jumps, teacher: Net, when: When) -> Tensor:
        """Over each row's own step, by as many steps of the teacher as a path has."""
        times = jumps.t + torch.linspace(0, 1, self.nodes(when) + 1, dtype=torch.float64)[:, None] * jumps.dt
        path = self.integrate(jumps, times, teacher, when)
        return (path[-1] - path[0]) / spread(jumps.dt, path[0])

    def consistency(
        self, x1: Tensor, noise: Tensor, cond: Any, teacher: Net, when: When
    ) -> tuple[Jumps, Tensor, dict[str, slice]]:
        rows, nodes = len(x1), self.nodes(when)
        paths = math.ceil(rows / (self.cfg.jump_per_path if self.by_jumps(when) else self.cfg.per_path))
        zero = torch.zeros(paths, dtype=torch.float64)
        guidance, asked = self.strengths(noise[:paths], cond[:paths])
        start = Jumps(noise[:paths], zero, zero + 1, (x1 - noise)[:paths], asked, guidance)
        times = self.node_times(paths, nodes)
        path = self.integrate(start, times, teacher, when)  # [nodes+1,paths,C,h,w]
        t, dt, parts = self.lengths(rows, when)  # the same law of steps as elsewhere, moved to the nearest nodes
        own = torch.arange(rows) % paths
        longest = (t == 0) & (dt == self.reach(when))
        first = (t * nodes).round().long().clamp(max=nodes - 1)
        last = torch.maximum(((t + dt) * nodes).round().long(), first + 1)
        # Rows that ask for the longest step of one path are all the same (but for dropout). The network sees the first
        # of them, which come before all other rows, and it counts for the others.
        kept = ~longest | (torch.arange(rows) < paths)
        counts = torch.where(longest, torch.bincount(own[longest], minlength=paths)[own], 1)[kept]
        first, last, own = first[kept], last[kept], own[kept]
        ones = {"consistency_d1": slice(0, int((longest & kept).sum()))}
        parts = {"consistency": slice(0, len(own))} | (ones if "consistency_d1" in parts else {})
        t, dt = times[first, own], times[last, own] - times[first, own]
        row = beside(own, noise)
        x_t, end = (path[beside(node, noise), row] for node in (first, last))
        jumps = Jumps(
            x_t, t, dt, (path[-1] - path[0])[row], asked[row],
            guidance[row] if isinstance(guidance, Tensor) else guidance, counts,
        )
        return jumps, (end - x_t) / spread(dt, x_t), parts

    def by_jumps(self, when: When) -> bool:
        """Whether the teacher takes its paths by jumps, no longer by velocities."""
        return self.cfg.jumps_from < 1 and when.progress >= self.cfg.jumps_from

    def nodes(self, when: When) -> int:
        """Steps of each path."""
        return self.cfg.jump_nodes if self.by_jumps(when) else self.cfg.nodes

    def node_times(self, paths: int, nodes: int) -> Tensor:
        """Rising times of the nodes: float64 [nodes+1,paths] on the CPU; inner ones move by up to half a step."""
        times = torch.arange(nodes + 1, dtype=torch.float64)[:, None].repeat(1, paths)
        times[1:-1] += self.cfg.jitter * (torch.rand(nodes - 1, paths, dtype=torch.float64) - 0.5)
        return times / nodes

    def integrate(self, start: Jumps, times: Tensor, teacher: Net, when: When) -> Tensor:
        """States [K+1,B,C,h,w] at ``times`` [K+1,B] of the guided flow from ``start.x_t``.

        By velocities: two-step Adams-Bashforth for steps of any lengths; the first step is Euler's. By jumps: as they
        are, or with ``jump_guidance``.
        """
        by_jumps = self.by_jumps(when)
        if by_jumps:
            teacher = Guided(teacher, self.cfg.jump_guidance)
        states = [start.x_t]
        before: tuple[Tensor, Tensor] | None = None
        for t, s in pairwise(times):
            x, step = states[-1], s - t
            velocity = ahead = self.ask(teacher, x, t, step if by_jumps else torch.zeros_like(t), start)
            if before is not None and not by_jumps:
                ahead = velocity + spread(step / (2 * before[0]), x) * (velocity - before[1])
            states.append(x + spread(step, x) * ahead)
            before = step, velocity
        return torch.stack(states)
