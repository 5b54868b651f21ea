"""Paths between noise and data: how much of both a point holds, and what a network's answer says about them.

Every path is ``x_t = alpha x1 + sigma noise``. A solver that is written in terms of a path's two ends (DDIM, DDPM,
DPM-Solver++) drives any network, whether it was trained to answer velocities, v or eps.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from configs.sampler_cfg import DDPMCfg


class Path(ABC):
    """A path, and the parametrisation of the networks that were trained on it."""

    answers: ClassVar[str]
    """What such a network answers at ``dt = 0``, as half a sentence."""
    most_steps: int = 1_000_000
    why_no_more: ClassVar[str] = "far beyond what makes a difference"

    @abstractmethod
    def amplitudes(self, t: float) -> tuple[float, float]:
        """alpha and sigma at time ``t``."""

    @abstractmethod
    def ends(self, answer: Tensor, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The data and the noise that a network expects behind ``x`` [B,C,h,w] when it answers ``answer``."""

    def place(self, times: Tensor) -> Tensor:
        """The nearest times at which the network can be asked: float64 [n].

        Raises:
            ValueError: two times would fall together.
        """
        return times

    def log_ratio(self, t: float) -> float:
        """log(alpha / sigma), half of the log-SNR: minus infinity at pure noise, infinity at data."""
        alpha, sigma = self.amplitudes(t)
        if alpha == 0 or sigma == 0:
            return -math.inf if alpha == 0 else math.inf
        return math.log(alpha / sigma)


class Straight(Path):
    """``x_t = t x1 + (1 - t) noise``, with networks that answer the velocity ``x1 - noise``."""

    answers: ClassVar[str] = "the instantaneous velocity on the straight path x_t = (1 - t) noise + t mask"

    def amplitudes(self, t: float) -> tuple[float, float]:
        return t, 1 - t

    def ends(self, answer: Tensor, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return x + (1 - t) * answer, x - t * answer


class VariancePreserving(Path):
    """The training chain of Ho et al. (2020), ``alpha^2 + sigma^2 = 1``, with networks that answer v or eps.

    The chain's integer index n (0 = data ... T = noise) stays in this class and in DDPM's training; t = 1 - n/T.
    """

    answers: ClassVar[str] = (
        "v or eps on the variance-preserving path x_t = alpha mask + sigma noise with alpha^2 + sigma^2 = 1"
    )

    why_no_more: ClassVar[str] = "the length of the training chain"

    def __init__(self, cfg: DDPMCfg) -> None:
        self.cfg = cfg
        self.most_steps = cfg.timesteps
        power = cumulative_signal(cfg)
        self.alpha, self.sigma = power.sqrt(), (1 - power).sqrt()  # float64 [T + 1]
        self.both = list(zip(self.alpha.tolist(), self.sigma.tolist(), strict=True))  # plain numbers, also in a graph

    def amplitudes(self, t: float) -> tuple[float, float]:
        n = round((1 - t) * self.cfg.timesteps)
        return self.both[n]

    def ends(self, answer: Tensor, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.amplitudes(t)
        if self.cfg.prediction == "eps":
            return (x - sigma * answer) / alpha, answer  # Ho et al. 2020, eq. 15
        return alpha * x - sigma * answer, sigma * x + alpha * answer  # Salimans & Ho 2022, appendix D

    def place(self, times: Tensor) -> Tensor:
        total = self.cfg.timesteps
        n = torch.round(total * (1 - times))
        for i in (n.diff() == 0).nonzero().flatten().tolist():
            raise ValueError(
                f"times has {times[i].item():.6g} and {times[i + 1].item():.6g}, but both fall on step {int(n[i])} "
                f"of the training chain: leave at least {1 / total:.6g} between times"
            )
        return 1 - n / total


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
