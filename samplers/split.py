"""SplitMeanFlow (Guo et al. 2025, arXiv 2507.16884): the average velocity over a step, from any two parts of it."""

from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from configs.sampler_cfg import SamplerCfg, SplitCfg
from samplers.base import When
from samplers.flow_map import FlowMap, Jumps, two_part
from samplers.net import Net

Step = TypeVar("Step", float, Tensor)


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
        """Steps up to 1/grid are asked as ``dt = 0``, which the flow rows train; the rest as they are."""
        return step * (step > (1 + 1e-6) / self.cfg.grid)
