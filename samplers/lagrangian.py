"""Lagrangian self-distillation (Boffi et al. 2025, arXiv 2505.18825) with a fixed target.

A jump X(dt) = x_t + dt u(x_t, t, dt) must move, as dt grows, with the velocity at its end: dX/d(dt) = v(X, t + dt).
Written for u: u + dt du/d(dt) = v. The published form trains through the derivative; here derivative and velocity are
the teacher's, u alone is trained, and only the number dt is differentiated.
"""

from typing import ClassVar

import torch
from torch import Tensor

from configs.sampler_cfg import LagrangianCfg, SamplerCfg
from samplers.base import When
from samplers.derivative import difference
from samplers.flow_map import FlowMap, Jumps
from samplers.net import Net, spread


class Lagrangian(FlowMap):
    """Consistency rows learn the velocity at the jump's end, less what the average still changes there."""

    name: ClassVar[str] = "lagrangian"
    drives: ClassVar[type[SamplerCfg]] = LagrangianCfg
    cfg: LagrangianCfg

    def average_velocity(self, jumps: Jumps, teacher: Net, when: When) -> Tensor:
        t, dt = jumps.t, jumps.dt
        end = jumps.x_t + spread(dt, jumps.x_t) * self.ask(teacher, jumps.x_t, t, dt, jumps)
        velocity = self.ask(teacher, end, t + dt, torch.zeros_like(dt), jumps)
        slope = difference(
            lambda s: self.ask(teacher, jumps.x_t, t, dt + s, jumps), self.cfg.probe, dt / 2, 1 - t - dt, end.device
        )
        return velocity - spread(dt, slope) * slope
