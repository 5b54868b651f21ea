"""Closed forms for data x1 ~ N(mean, s^2) in every pixel: the networks that perfect training would give.

The mean of each row is its prompt; a dropped prompt means 0. Everything is float64 where its input is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers import Net, Solver
from samplers.bridge import VariancePreserving
from samplers.ddpm import DDPM


@dataclass(frozen=True)
class Prompt:
    """A condition: one number per row, and the guidance strength that it asks for."""

    mean: Tensor  # [B]
    guidance: Tensor | None = None  # [B]; None: not an input

    @property
    def strength(self) -> Tensor:
        return torch.ones_like(self.mean) if self.guidance is None else self.guidance

    def map(self, change: Callable[[Tensor], Tensor]) -> "Prompt":
        return Prompt(change(self.mean), None if self.guidance is None else change(self.guidance))

    def guided(self, w: float | Tensor) -> "Prompt":
        return Prompt(self.mean, torch.as_tensor(w, dtype=self.mean.dtype).expand_as(self.mean))

    def drop(self, rows: Tensor) -> "Prompt":
        kept = self.guidance if self.guidance is None else self.guidance.masked_fill(rows, 1.0)
        return Prompt(torch.where(rows, torch.zeros_like(self.mean), self.mean), kept)

    def repeat(self, n: int) -> "Prompt":
        return self.map(lambda value: value.repeat(n))

    def __getitem__(self, rows: slice | Tensor) -> "Prompt":
        return self.map(lambda value: value[rows])

    def concat(self, other: "Prompt") -> "Prompt":
        neither = self.guidance is None and other.guidance is None
        strength = None if neither else torch.cat([self.strength, other.strength])
        return Prompt(torch.cat([self.mean, other.mean]), strength)

    def same(self) -> Tensor:
        return self.mean[:, None] == self.mean


def prompts(*means: float) -> Prompt:
    return Prompt(torch.tensor(means, dtype=torch.float64))


def column(value: Tensor) -> Tensor:
    return value.double().view(-1, 1, 1, 1)


@dataclass(frozen=True)
class FlowMap:
    """Average velocity of the straight path's flow from t to t + dt; at dt = 0 the velocity itself.

    With z = (x_t - t mean) / sigma_t constant along the flow and sigma_t^2 = (1-t)^2 + t^2 s^2, the flow map is
    X_{t->r}(x) = r mean + (sigma_r / sigma_t) (x - t mean).
    """

    s: float
    instant: float = 0.0  # what dt = 0 stands for: 1/grid makes the discrete ladder consistent to its end
    held: float = 1.0  # guidance that is trained into steps dt > 0

    def sigma(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 + t**2 * self.s**2).sqrt()

    def transport(self, x: Tensor, t: Tensor, r: Tensor, mean: Tensor) -> Tensor:
        return r * mean + self.sigma(r) / self.sigma(t) * (x - t * mean)

    def velocity(self, x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        return mean + (t * self.s**2 - (1 - t)) / self.sigma(t) ** 2 * (x - t * mean)  # d/dr transport at r = t

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        t, dt, mean = column(t), column(dt), column(cond.mean)
        held = self.held if cond.guidance is None else column(cond.guidance)
        mean = torch.where(dt > 0, held * mean, mean)
        dt = torch.where(dt == 0, self.instant, dt)
        jump = (self.transport(x, t, t + dt, mean) - x) / torch.where(dt == 0, 1.0, dt)
        return torch.where(dt == 0, self.velocity(x, t, mean), jump)


@dataclass(frozen=True)
class Denoiser:
    """Posterior means of eps or v = alpha eps - sigma x1 on the path x = alpha x1 + sigma eps of ``sampler``."""

    sampler: DDPM
    s: float

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        n = torch.round((1 - t.double()) * self.sampler.cfg.timesteps).long()
        alpha, sigma, mean = column(self.sampler.alpha[n]), column(self.sampler.sigma[n]), column(cond.mean)
        surprise = (x - alpha * mean) / (alpha**2 * self.s**2 + sigma**2)
        eps, x1 = sigma * surprise, mean + alpha * self.s**2 * surprise
        return eps if self.sampler.cfg.prediction == "eps" else alpha * eps - sigma * x1


def exact_net(sampler: Solver, s: float) -> Net:
    """What perfect training on the path of ``sampler`` ends in."""
    return Denoiser(DDPM(sampler.path.cfg), s) if isinstance(sampler.path, VariancePreserving) else FlowMap(s)


def toy_net(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
    """No truth, only a smooth function of everything, row by row."""
    t, dt, mean = (value.to(x.dtype).view(-1, 1, 1, 1) for value in (t, dt, cond.mean))
    return torch.sin(1.5 * x + mean) + 0.3 * torch.cos(4 * t) * x - 0.2 * dt * mean


def ladder_net(s: float, grid: int, held: float = 1.0) -> FlowMap:
    """The fixed point of shortcut training on a discrete ladder, where dt = 0 stands for the step 1/grid."""
    return replace(FlowMap(s), instant=1 / grid, held=held)


def flow_floor(s: float) -> float:
    """Smallest possible flow loss under uniform times.

    Var(x1 - x0 | x_t) = (1 + s^2) - (t s^2 - (1 - t))^2 / sigma_t^2 = s^2 / sigma_t^2; its integral over t is pi s / 2.
    """
    return math.pi * s / 2
