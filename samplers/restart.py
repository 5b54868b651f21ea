"""Restart sampling of flow maps: jump to the data, add fresh noise for the next time, jump again.

It is the multistep sampler of consistency models (Song et al. 2023, algorithm 1) on the straight path. Errors of one
jump are washed out by the noise instead of carried on; 2 to 4 steps are enough, since each of them jumps all the way.
"""

from typing import Any, ClassVar

from torch import Tensor

from configs.sampler_cfg import FlowMapCfg
from samplers.flow_map import FlowMap
from samplers.guidance import Guidance
from samplers.net import Net, Randn, filled
from samplers.solver import Solver


class Restart(Solver):
    """A jump of ``dt = 1 - t`` in every step, and fresh noise up to the time at which the next one starts."""

    name: ClassVar[str] = "restart"
    drives = FlowMapCfg
    answers: ClassVar[str] = FlowMap.answers

    def query(self, step: float) -> float:
        return step if self.learned is None else self.learned.query(step)

    def guided(self, net: Net, guidance: Guidance, t: float, s: float) -> Net:
        # whatever the next time is, the network is asked for the whole way
        return super().guided(net, guidance, t, 1.0) if self.learned is None else self.learned.guided(
            net, guidance, t, 1.0
        )

    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        x1 = x + (1 - t) * net(x, filled(t, x), filled(self.query(1 - t), x), cond)
        return s * x1 + (1 - s) * randn(x) if s < 1 else x1
