"""Denoising diffusion on the variance-preserving path (Ho et al. 2020), with ancestral steps.

The chain's integer index n (0 = data ... T = noise) stays in this file; the network sees t = 1 - n/T and dt = 0.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from configs.sampler_cfg import DDPMCfg, SamplerCfg
from samplers.base import Sampler, Targets, When
from samplers.net import Net, Randn, filled, spread, time_dtype


class DDPM(Sampler):
    """Learns v or eps at the points ``x = alpha x1 + sigma noise`` with ``alpha^2 + sigma^2 = 1``."""

    name: ClassVar[str] = "ddpm"
    drives: ClassVar[type[SamplerCfg]] = DDPMCfg
    answers: ClassVar[str] = (
        "v or eps on the variance-preserving path x_t = alpha mask + sigma noise with alpha^2 + sigma^2 = 1"
    )
    cfg: DDPMCfg
    eta: float = 1.0
    """Share of the posterior's noise that a step adds: 1 is ancestral sampling."""

    def __init__(self, cfg: DDPMCfg) -> None:
        super().__init__(cfg)
        power = cumulative_signal(cfg)
        self.alpha, self.sigma = power.sqrt(), (1 - power).sqrt()  # float64 [T + 1]

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

    def times(self, steps: int) -> Tensor:
        """Trailing spacing (Lin et al. 2024, section 3.3): the first step starts at pure noise, n = T."""
        regular = super().times(steps)
        total = self.cfg.timesteps
        if steps > total:
            raise ValueError(f"steps is {steps}, but it must be at most {total}, the length of the training chain")
        return 1 - torch.round(total * (1 - regular)) / total

    def irregular(self, times: Sequence[float] | Tensor) -> Tensor:
        """The user's own times on the nearest points of the chain.

        Raises:
            ValueError: they do not rise from 0 to 1, or two of them fall on one point of the chain.
        """
        grid = super().irregular(times)
        total = self.cfg.timesteps
        n = torch.round(total * (1 - grid))
        for i in (n.diff() == 0).nonzero().flatten().tolist():
            raise ValueError(
                f"times has {grid[i].item():.6g} and {grid[i + 1].item():.6g}, but both fall on step {int(n[i])} "
                f"of the training chain: leave at least {1 / total:.6g} between times"
            )
        return 1 - n / total

    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        alpha_t, sigma_t = self.signal_and_noise(t)
        alpha_s, sigma_s = self.signal_and_noise(s)
        answer = net(x, filled(t, x), filled(0.0, x), cond)
        if self.cfg.prediction == "eps":
            x1, eps = (x - sigma_t * answer) / alpha_t, answer  # Ho et al. 2020, eq. 15
        else:
            x1, eps = alpha_t * x - sigma_t * answer, sigma_t * x + alpha_t * answer  # Salimans & Ho 2022, appendix D
        # Song et al. 2021, eq. 16; the difference is sigma_t^2 - (alpha_t sigma_s / alpha_s)^2 over the path's circle
        added = self.eta * (sigma_s / sigma_t) * math.sqrt(1 - (alpha_t / alpha_s) ** 2)
        x_s = alpha_s * x1 + math.sqrt(max(sigma_s**2 - added**2, 0.0)) * eps  # Song et al. 2021, eq. 12
        return x_s + added * randn(x) if added > 0 else x_s

    def signal_and_noise(self, t: float) -> tuple[float, float]:
        """alpha and sigma at time ``t``."""
        n = round((1 - t) * self.cfg.timesteps)
        return float(self.alpha[n]), float(self.sigma[n])


def cumulative_signal(cfg: DDPMCfg) -> Tensor:
    """alpha^2 at n = 0 ... T, from 1 downwards: float64 [T + 1] on the CPU."""
    total = cfg.timesteps
    if cfg.schedule == "cosine":
        n = torch.arange(total + 1, dtype=torch.float64)
        wanted = torch.cos((n / total + 0.008) / 1.008 * math.pi / 2) ** 2  # Nichol & Dhariwal 2021, eq. 17
        beta = (1 - wanted[1:] / wanted[:-1]).clamp(max=0.999)
    else:
        # Ho et al. 2020, section 4, for T = 1000; shorter chains take as much noise in fewer steps
        beta = (torch.linspace(1e-4, 0.02, total, dtype=torch.float64) * 1000 / total).clamp(max=0.999)
    amplitude = torch.cumprod(1 - beta, 0).sqrt()
    if cfg.zero_terminal_snr:
        first, last = amplitude[0], amplitude[-1]
        amplitude = (amplitude - last) * first / (first - last)  # Lin et al. 2024, algorithm 1
    return torch.cat([torch.ones(1, dtype=torch.float64), amplitude**2])
