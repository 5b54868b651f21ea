"""SplitMeanFlow (Guo et al. 2025, arXiv 2507.16884): the average velocity over a step, from any two parts of it."""

from typing import ClassVar

import torch
from torch import Tensor

from configs.sampler_cfg import SamplerCfg, SplitCfg
from samplers.base import When
from samplers.flow_map import FlowMap, Jumps, Step, or_velocity, two_part
from samplers.net import Net


class Split(FlowMap):
    """Consistency rows learn steps ``dt`` from two steps whose lengths are a random share of it and the rest."""

    name: ClassVar[str] = "split"
    drives: ClassVar[type[SamplerCfg]] = SplitCfg
    cfg: SplitCfg

    def average_velocity(self, jumps: Jumps, teacher: Net, when: When) -> Tensor:
        part = torch.rand_like(jumps.dt)
        near, far = part * jumps.dt, (1 - part) * jumps.dt
        first = self.ask(teacher, jumps.x_t, jumps.t, self.query(near), jumps)
        return two_part(  # Guo et al. 2025, eq. 9
            jumps.x_t, jumps.dt, part, first,
            lambda x: self.ask(teacher, x, jumps.t + near, self.query(far), jumps),
        )

    def query(self, step: Step) -> Step:
        return or_velocity(step, self.cfg.grid)
