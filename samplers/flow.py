"""Flow matching on the straight path between noise and data (Lipman et al. 2023; Liu et al. 2023)."""

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from configs.diffusion_cfg import FlowCfg, SamplerCfg, ShortcutCfg
from samplers.base import Sampler, Targets
from samplers.net import Net, Randn, filled, spread, time_dtype

F = TypeVar("F", bound="FlowMatching")


class FlowMatching(Sampler):
    """Learns the instantaneous velocity (``dt = 0``) and follows it with Euler's or Heun's steps."""

    name: ClassVar[str] = "flow"
    drives: ClassVar[type[SamplerCfg]] = FlowCfg
    answers: ClassVar[str] = "the instantaneous velocity on the straight path x_t = (1 - t) noise + t mask"
    cfg: FlowCfg

    def __init__(self, cfg: FlowCfg) -> None:
        super().__init__(cfg)
        self.velocity_guidance = 1.0
        """Guidance that the network holds at dt > 0 and lacks at dt = 0."""

    @classmethod
    def driving(cls: type[F], trained: SamplerCfg, cfg: SamplerCfg) -> F:
        sampler = super().driving(trained, cfg)
        if isinstance(trained, ShortcutCfg):
            sampler.velocity_guidance = trained.train_guidance
        return sampler

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

    def query(self, step: float) -> float:
        """The ``dt`` that stands for a step of this length."""
        return 0.0

    def scale(self, guidance: float | Tensor, t: float, s: float) -> float | Tensor:
        # A net trained with guidance w answers u_w = u_null + w (u_cond - u_null) for prompts at dt > 0, so that
        # u_null + g (u_w - u_null) = u_null + g w (u_cond - u_null): at dt = 0 the factor w has to be put in here.
        return guidance * self.velocity_guidance if self.query(s - t) == 0 else guidance

    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        dt = filled(self.query(s - t), x)
        u = net(x, filled(t, x), dt, cond)
        if self.cfg.heun:
            u = (u + net(x + (s - t) * u, filled(s, x), dt, cond)) / 2  # Karras et al. 2022, algorithm 1
        return x + (s - t) * u


def interpolate(noise: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """The straight path at ``t`` [B]: [B,C,h,w]."""
    return torch.lerp(noise, x1, spread(t, x1))  # Liu et al. 2023, eq. 1: (1 - t) noise + t x1
