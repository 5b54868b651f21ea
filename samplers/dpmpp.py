"""DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order at one network call a step."""

import math
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from configs.sampler_cfg import DDPMCfg, FlowCfg
from samplers.bridge import Straight, VariancePreserving
from samplers.guidance import Guidance
from samplers.known import Hold, free
from samplers.net import Net, Randn, filled
from samplers.solver import Solver


class DPMpp(Solver):
    """Extrapolates the expected data from the last two steps, linearly in lambda = log(alpha / sigma).

    The step is of first order where lambda is infinite (at pure noise and at data), and where guidance has just been
    switched on or off, since what was expected before then belongs to another path.
    """

    name: ClassVar[str] = "dpmpp"
    drives = (FlowCfg, DDPMCfg)
    answers: ClassVar[str] = f"{Straight.answers}, or {VariancePreserving.answers}"

    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        return self.towards(self.expected(net, x, t, cond), x, t, s)

    def walk(
        self, net: Net, x: Tensor, grid: list[float], cond: Any, guidance: Guidance, randn: Randn, hold: Hold = free
    ) -> Tensor:
        before: tuple[float, Tensor] | None = None  # time of the step before, and the data that it expected
        for t, s in pairwise(grid):
            x1 = ahead = self.expected(self.guided(net, guidance, t, s), x, t, cond)
            if before and guidance.inside(before[0]) == guidance.inside(t):
                ahead = x1 + self.reach(before[0], t, s) * (x1 - before[1])
            x = hold(self.towards(ahead, x, t, s).to(x.dtype), s)
            before = t, x1
        return x

    def reach(self, before: float, t: float, s: float) -> float:
        """1 / (2 r): half of the coming step in lambda as a multiple of the step before."""
        last, now, coming = (self.path.log_ratio(time) for time in (before, t, s))
        return 0.0 if math.isinf(last) or math.isinf(coming) else (coming - now) / (2 * (now - last))

    def expected(self, net: Net, x: Tensor, t: float, cond: Any) -> Tensor:
        """The data that the network expects behind ``x`` [B,C,h,w]."""
        return self.path.ends(net(x, filled(t, x), filled(0.0, x), cond), x, t)[0]

    def towards(self, x1: Tensor, x: Tensor, t: float, s: float) -> Tensor:
        """Move ``x`` [B,C,h,w] from ``t`` to ``s`` as if the data were ``x1``."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.path.amplitudes(t), self.path.amplitudes(s)
        kept = sigma_s / sigma_t
        return kept * x + (alpha_s - alpha_t * kept) * x1  # with alpha_s e^-h = alpha_t sigma_s / sigma_t
