"""Sampling that starts from given data, or keeps part of it: variation and inpainting without any training.

The given data is put on the path of the sampler together with the sample's own noise, ``x_t = alpha x1 + sigma noise``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.checks import require
from samplers.bridge import Path

Hold = Callable[[Tensor, float], Tensor]
"""(x [B,C,h,w] at a time, that time) -> what the next step starts from."""


def free(x: Tensor, t: float) -> Tensor:
    """Hold on to nothing."""
    return x


@dataclass(frozen=True)
class Known:
    """Data that a sample starts from, and the part of it in which the sample ends.

    Raises:
        ConfigError: a start outside of [0, 1).
    """

    x1: Tensor
    """Data [B,C,h,w], or [1,C,h,w] for all rows."""
    start: float = 0.0
    """Sampling begins at this time, from ``x1`` with the noise of that time; 0: from pure noise. This is SDEdit (Meng
    et al. 2022, arXiv 2108.01073, algorithm 1) on the sampler's own path."""
    keep: Tensor | None = None
    """Where it is True (bool, broadcast over [B,C,h,w]), each step ends on the path of ``x1`` instead of where the
    network went, as in RePaint (Lugmayr et al. 2022, arXiv 2201.09865, eq. 8), here in latent space (Avrahami et al.
    2023, arXiv 2206.02779). None: nowhere."""

    def __post_init__(self) -> None:
        require(0 <= self.start < 1, "start", self.start, "at least 0 and below 1")

    def at(self, path: Path, noise: Tensor, t: float) -> Tensor:
        """The data with the noise of time ``t``: [B,C,h,w], of the dtype of ``noise``; pure noise at 0."""
        if t == 0:
            return noise
        alpha, sigma = path.amplitudes(t)
        return alpha * self.x1.to(noise) + sigma * noise

    def begin(self, path: Path, noise: Tensor, t: float) -> tuple[Tensor, Hold]:
        """Where to begin at time ``t`` [B,C,h,w], and what puts the kept part back where it belongs after each step.

        The kept part has the same noise on the whole way, so that it moves straight to ``x1``.
        """
        x, keep = self.at(path, noise, t), self.keep
        if keep is None:
            return x, free
        on = keep.to(noise.device)
        return x, lambda x, t: torch.where(on, self.at(path, noise, t), x)
