"""Flow matching on the straight path between noise and data (Lipman et al. 2023; Liu et al. 2023)."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from configs.diffusion_cfg import FlowCfg, SamplerCfg
from samplers.base import Sampler, Targets
from samplers.bridge import Straight
from samplers.heun import heun_step
from samplers.net import Net, Randn, filled, spread, time_dtype


class FlowMatching(Sampler):
    """Learns the instantaneous velocity (``dt = 0``) and follows it with Euler's or Heun's steps."""

    name: ClassVar[str] = "flow"
    drives: ClassVar[type[SamplerCfg]] = FlowCfg
    answers: ClassVar[str] = Straight.answers
    cfg: FlowCfg

    def draw(self, x1: Tensor, cond: Any, teacher: Net, step: int) -> Targets:
        x_t, t, velocity = self.flow_rows(x1)
        return Targets(x_t, t, torch.zeros_like(t), cond, velocity, torch.ones_like(t), {"flow": slice(0, len(x1))})

    def flow_rows(self, x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points on the path, their times and their velocities: [B,C,h,w], [B], [B,C,h,w]."""
        t = self.flow_times(torch.empty(len(x1), dtype=time_dtype(x1), device=x1.device))
        noise = torch.randn_like(x1)
        return interpolate(noise, x1, t), t, x1 - noise

    def flow_times(self, like: Tensor) -> Tensor:
        """Training times [B]: logit-normal (Esser et al. 2024, eq. 19), or uniform where ``time_std`` is 0."""
        if self.cfg.time_std == 0:
            return torch.rand_like(like)
        return (self.cfg.time_mean + self.cfg.time_std * torch.randn_like(like)).sigmoid()

    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        if self.cfg.heun:
            return heun_step(net, x, t, s, cond)
        return x + (s - t) * net(x, filled(t, x), filled(self.query(s - t), x), cond)


def interpolate(noise: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """The straight path at ``t`` [B]: [B,C,h,w]."""
    return torch.lerp(noise, x1, spread(t, x1))  # Liu et al. 2023, eq. 1: (1 - t) noise + t x1
