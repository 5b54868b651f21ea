"""DDIM's and DDPM's steps on any path (Song et al. 2021), and both as solvers for velocity networks."""

import math
from typing import Any, ClassVar

from torch import Tensor

from configs.sampler_cfg import FlowCfg
from configs.solver_cfg import FlowDDIMCfg
from samplers.bridge import Path, Straight
from samplers.net import Net, Randn, filled
from samplers.solver import Solver


def ancestral(path: Path, eta: float, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
    """Move ``x`` [B,C,h,w] from ``t`` to ``s`` with the share ``eta`` of the posterior's noise.

    ``eta = 0`` is deterministic, on the straight path Euler's step; ``eta = 1`` is ancestral sampling.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path.amplitudes(t), path.amplitudes(s)
    x1, noise = path.ends(net(x, filled(t, x), filled(0.0, x), cond), x, t)
    # Song et al. 2021, eq. 16, holds on any path in this form; the ratio is SNR_t / SNR_s.
    renewed = eta**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)
    x_s = alpha_s * x1 + sigma_s * math.sqrt(1 - renewed) * noise  # Song et al. 2021, eq. 12
    added = sigma_s * math.sqrt(renewed)
    return x_s + added * randn(x) if added > 0 else x_s


class FlowDDPM(Solver):
    """Ancestral sampling of a network that was trained on velocities."""

    name: ClassVar[str] = "ddpm"
    drives = FlowCfg
    answers: ClassVar[str] = Straight.answers
    eta: float = 1.0

    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        return ancestral(self.path, self.eta, net, x, t, s, cond, randn)


class FlowDDIM(FlowDDPM):
    """Euler's steps at ``eta = 0``, with more and more fresh noise up to ``eta = 1``."""

    name: ClassVar[str] = "ddim"
    cfg: FlowDDIMCfg

    def __init__(self, cfg: FlowDDIMCfg) -> None:
        super().__init__(cfg)
        self.eta = cfg.eta
