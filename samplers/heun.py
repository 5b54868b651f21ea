"""Heun's second-order steps for velocity networks (Karras et al. 2022, algorithm 1)."""

from typing import Any, ClassVar

from torch import Tensor

from configs.sampler_cfg import FlowCfg
from samplers.bridge import Straight
from samplers.net import Net, Randn, filled
from samplers.solver import Solver


def heun_step(net: Net, x: Tensor, t: float, s: float, cond: Any) -> Tensor:
    """Move ``x`` [B,C,h,w] from ``t`` to ``s`` by the mean of the velocities at both; the last step is Euler's.

    At s = 1 the velocity of concentrated data jumps, and no network learns it there. One step of first order leaves
    the whole of second order.
    """
    still = filled(0.0, x)
    u = net(x, filled(t, x), still, cond)
    if s < 1:
        u = (u + net(x + (s - t) * u, filled(s, x), still, cond)) / 2
    return x + (s - t) * u


class Heun(Solver):
    """Second order at two network calls a step (one in the last)."""

    name: ClassVar[str] = "heun"
    drives = FlowCfg
    answers: ClassVar[str] = Straight.answers

    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        return heun_step(net, x, t, s, cond)
