"""SoFlow (arXiv 2512.15657) and alpha-Flow (arXiv 2510.20771): one teacher call, and no derivative of the network."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from configs.sampler_cfg import SamplerCfg, SoFlowCfg
from samplers.base import When
from samplers.flow_map import FlowMap, Jumps, two_part
from samplers.net import Net

SIGMOID_TEMPERATURE = 25.0  # alpha-Flow's


class SoFlow(FlowMap):
    """Consistency rows take a short first part along the data's velocity, and the teacher's step for the rest.

    As the first part shrinks, the target becomes that of MeanFlow.
    """

    name: ClassVar[str] = "soflow"
    drives: ClassVar[type[SamplerCfg]] = SoFlowCfg
    cfg: SoFlowCfg

    def average_velocity(self, jumps: Jumps, teacher: Net, when: When) -> Tensor:
        first = self.guided_velocity(teacher, jumps, self.cfg.data_velocity)
        share = self.share_of_first(when.progress)
        t, dt = jumps.t + share * jumps.dt, (1 - share) * jumps.dt
        return two_part(
            jumps.x_t, jumps.dt, torch.full_like(dt, share), first, lambda x: self.ask(teacher, x, t, dt, jumps)
        )

    def gain(self, jumps: Jumps, when: When) -> float:
        # The network's difference from the target shrinks with the first part, so the loss divides it out again.
        return 1 / self.share_of_first(when.progress)

    def share_of_first(self, progress: float) -> float:
        """The first part's share of a step: exponential (SoFlow, section 4), or 1 to 0 as a sigmoid (alpha-Flow)."""
        first, last = self.cfg.first_part, self.cfg.last_part
        if self.cfg.schedule == "exponential":
            return first * (last / first) ** progress
        return max(last, 1 / (1 + math.exp(SIGMOID_TEMPERATURE * (progress - 0.5))))
