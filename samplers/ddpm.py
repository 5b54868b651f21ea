"""Denoising diffusion on the variance-preserving path (Ho et al. 2020), with ancestral steps.

The network sees t = 1 - n/T, where n is the chain's index (0 = data ... T = noise), and dt = 0. Regular times are
spaced backwards from pure noise, n = T (trailing spacing, Lin et al. 2024, section 3.3).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from configs.sampler_cfg import DDPMCfg, SamplerCfg
from samplers.ancestral import ancestral
from samplers.base import Sampler, Targets, When
from samplers.bridge import VariancePreserving
from samplers.net import Net, Randn, spread, time_dtype


class DDPM(Sampler):
    """Learns v or eps at the points ``x = alpha x1 + sigma noise`` with ``alpha^2 + sigma^2 = 1``."""

    name: ClassVar[str] = "ddpm"
    drives: ClassVar[type[SamplerCfg]] = DDPMCfg
    answers: ClassVar[str] = VariancePreserving.answers
    path: VariancePreserving
    cfg: DDPMCfg
    eta: float = 1.0
    """Share of the posterior's noise that a step adds: 1 is ancestral sampling."""

    def __init__(self, cfg: DDPMCfg) -> None:
        super().__init__(cfg)
        self.path = VariancePreserving(cfg)
        self.alpha, self.sigma = self.path.alpha, self.path.sigma  # float64 [T + 1]

    def draw(self, x1: Tensor, cond: Any, teacher: Net, when: When) -> Targets:
        total = self.cfg.timesteps
        n = torch.randint(1, total + 1, (len(x1),), device=x1.device)
        row_alpha, row_sigma = (table.to(time_dtype(x1)).to(x1.device)[n] for table in (self.alpha, self.sigma))  # [B]
        alpha, sigma = spread(row_alpha, x1), spread(row_sigma, x1)
        noise = torch.randn_like(x1)
        y = noise if self.cfg.prediction == "eps" else alpha * noise - sigma * x1  # Salimans & Ho 2022, appendix D
        t = 1 - n.to(time_dtype(x1)) / total
        x_t = alpha * x1 + sigma * noise  # Ho et al. 2020, eq. 4
        weight = self.weight(row_alpha, row_sigma)
        return Targets(x_t, t, torch.zeros_like(t), cond, y, weight, {"denoise": slice(0, len(x1))})

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """min-SNR-gamma weight [B] (Hang et al. 2023, section 3.4) for ``alpha`` and ``sigma`` [B]."""
        if self.cfg.min_snr == 0:
            return torch.ones_like(alpha)
        # min(SNR, gamma) weighs the error of x1; eps errs by SNR and v by SNR + 1 times as much, squared
        clipped = torch.minimum(alpha**2, self.cfg.min_snr * sigma**2)  # min(SNR, gamma) sigma^2
        return clipped / alpha**2 if self.cfg.prediction == "eps" else clipped

    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        return ancestral(self.path, self.eta, net, x, t, s, cond, randn)
