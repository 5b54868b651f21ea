"""Flow matching on the straight path between noise and data (Lipman et al. 2023; Liu et al. 2023)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from configs.sampler_cfg import FlowCfg, SamplerCfg
from samplers.base import Sampler, Targets, When
from samplers.bridge import Straight
from samplers.coupling import paired, plug_in_velocity
from samplers.heun import heun_step
from samplers.net import Net, Randn, filled, spread, time_dtype

LEAST_REST = 1e-3  # of the path: keeps the velocity of a network that answers data finite at the very end
LEAST_TRAINED_REST = 0.05  # the same for the loss, whose weight grows as 1/rest^2


@dataclass(frozen=True)
class VelocityFromData:
    """A network that answers the data at the end of the path, read as a velocity: (answer - x)/(1 - t)."""

    net: Net

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Any) -> Tensor:  # x [B,C,h,w], t [B], dt [B]
        return (self.net(x, t, dt, cond) - x) / spread((1 - t).clamp(min=LEAST_REST), x)


class FlowMatching(Sampler):
    """Learns the instantaneous velocity (``dt = 0``) and follows it with Euler's or Heun's steps."""

    name: ClassVar[str] = "flow"
    drives: ClassVar[type[SamplerCfg]] = FlowCfg
    answers: ClassVar[str] = Straight.answers
    cfg: FlowCfg

    def reading(self, net: Net) -> Net:
        return VelocityFromData(net) if self.cfg.prediction == "x" else net

    def draw(self, x1: Tensor, cond: Any, teacher: Net, when: When) -> Targets:
        x_t, t, velocity = self.flow_rows(x1, self.noise_for(x1, cond), cond)
        dt, even = torch.zeros_like(t), torch.ones_like(t)
        return self.capped(Targets(x_t, t, dt, cond, velocity, even, {"flow": slice(0, len(x1))}))

    def noise_for(self, x1: Tensor, cond: Any) -> Tensor:
        """Standard normal [B,C,h,w], one row for each mask."""
        noise = torch.randn_like(x1)
        if self.cfg.pairing == "none":
            return noise
        return paired(noise, x1, cond.same() if self.cfg.pairing == "prompt" else None)

    def flow_rows(self, x1: Tensor, noise: Tensor, cond: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Points on the path, their times and their velocities: [B,C,h,w], [B], [B,C,h,w]."""
        t = self.flow_times(torch.empty(len(x1), dtype=time_dtype(x1), device=x1.device))
        x_t, velocity = interpolate(noise, x1, t), x1 - noise
        if self.cfg.plug_in > 0:
            chosen = spread((torch.rand_like(t) < self.cfg.plug_in).to(t.dtype), x1)  # [B,1,1,1]
            velocity = torch.lerp(velocity, plug_in_velocity(x_t, t, x1, cond.same()), chosen)
        return x_t, t, velocity

    def flow_times(self, like: Tensor) -> Tensor:
        """Training times [B]: logit-normal (Esser et al. 2024, eq. 19), or uniform where ``time_std`` is 0."""
        if self.cfg.time_std == 0:
            return torch.rand_like(like)
        return (self.cfg.time_mean + self.cfg.time_std * torch.randn_like(like)).sigmoid()

    def capped(self, goal: Targets) -> Targets:
        """The same rows; errors of the data count at most 1/LEAST_TRAINED_REST^2 as errors of the velocity."""
        if self.cfg.prediction == "v":
            return goal
        rest = (1 - goal.t).clamp(min=LEAST_REST)
        cap = rest / rest.clamp(min=LEAST_TRAINED_REST)
        return replace(goal, weight=goal.weight * cap**2, gain=cap if goal.gain is None else goal.gain * cap)

    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        if self.cfg.heun:
            return heun_step(net, x, t, s, cond)
        return x + (s - t) * net(x, filled(t, x), filled(self.query(s - t), x), cond)


def interpolate(noise: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """The straight path at ``t`` [B]: [B,C,h,w]."""
    return torch.lerp(noise, x1, spread(t, x1))  # Liu et al. 2023, eq. 1: (1 - t) noise + t x1
