"""Restart sampling of flow maps: jump to the data, add fresh noise for the next time, jump again.

It is the multistep sampler of consistency models (Song et al. 2023, algorithm 1) on the straight path. Errors of one
jump are washed out by the noise instead of carried on; 2 to 4 steps are enough, since each of them jumps all the way.
"""

from typing import Any, ClassVar

from torch import Tensor

from configs.diffusion_cfg import ShortcutCfg
from samplers.net import Net, Randn, filled
from samplers.shortcut import Shortcut
from samplers.solver import HasSteps, Solver


class Restart(Solver):
    """A jump of ``dt = 1 - t`` in every step, and fresh noise up to the time at which the next one starts."""

    name: ClassVar[str] = "restart"
    drives = ShortcutCfg
    answers: ClassVar[str] = Shortcut.answers

    def __init__(self, cfg: HasSteps) -> None:
        super().__init__(cfg)
        self.learned: Solver = Shortcut(ShortcutCfg())

    @classmethod
    def driving(cls, learned: Solver, cfg: HasSteps) -> "Restart":
        solver = super().driving(learned, cfg)
        solver.learned = learned
        return solver

    def query(self, step: float) -> float:
        return self.learned.query(step)

    def scale(self, guidance: float | Tensor, t: float, s: float) -> float | Tensor:
        return super().scale(guidance, t, 1.0)  # whatever the next time is, the network is asked for the whole way

    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        x1 = x + (1 - t) * net(x, filled(t, x), filled(self.query(1 - t), x), cond)
        return s * x1 + (1 - s) * randn(x) if s < 1 else x1
