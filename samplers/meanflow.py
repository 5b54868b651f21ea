"""MeanFlow (Geng et al. 2025, arXiv 2505.13447) and its improved form (arXiv 2512.02012), by finite differences.

With d/dt along (dx, dt, d(dt)) = (v, 1, -1), the average velocity obeys u = v + dt du/dt (MeanFlow, eq. 6, in our
direction of time). Two probes of the teacher take the place of the Jacobian-vector product, so that any attention
kernel, DDP and FSDP work.
"""

from typing import ClassVar

from torch import Tensor

from configs.sampler_cfg import IMFCfg, MeanFlowCfg, SamplerCfg
from samplers.base import When
from samplers.derivative import difference
from samplers.flow_map import FlowMap, Jumps
from samplers.net import Net, spread


class MeanFlow(FlowMap):
    """The derivative runs along the data's own velocity."""

    name: ClassVar[str] = "meanflow"
    drives: ClassVar[type[SamplerCfg]] = MeanFlowCfg
    cfg: MeanFlowCfg

    def average_velocity(self, jumps: Jumps, teacher: Net, when: When) -> Tensor:
        velocity = self.guided_velocity(teacher, jumps, data=1.0)
        slope = self.slope(jumps, teacher, self.direction(jumps, teacher, velocity))
        return velocity + spread(jumps.dt, slope) * slope

    def direction(self, jumps: Jumps, teacher: Net, velocity: Tensor) -> Tensor:
        """Along which x changes in the derivative: [B,C,h,w]."""
        return velocity

    def slope(self, jumps: Jumps, teacher: Net, direction: Tensor) -> Tensor:
        """du/dt [B,C,h,w] at fixed end t + dt."""
        def at(s: Tensor) -> Tensor:
            return self.ask(teacher, jumps.x_t + spread(s, direction) * direction, jumps.t + s, jumps.dt - s, jumps)

        # dt - s stays above 0, whose answer is another one: the velocity, without the guidance of longer steps
        return difference(at, self.cfg.probe, jumps.t, jumps.dt / 2, jumps.x_t.device)


class IMF(MeanFlow):
    """The derivative runs along the network's own velocity, so that its noise is not the data's (iMF, eq. 12)."""

    name: ClassVar[str] = "imf"
    drives: ClassVar[type[SamplerCfg]] = IMFCfg
    cfg: IMFCfg

    def direction(self, jumps: Jumps, teacher: Net, velocity: Tensor) -> Tensor:
        return self.guided_velocity(teacher, jumps, data=0.0)
