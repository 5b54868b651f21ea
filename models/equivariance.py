"""Latents that turn and shrink as their images do (EQ-VAE, Kouzelis et al. 2025, arXiv 2502.09509)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 0.25  # of the side


@dataclass(frozen=True)
class Change:
    """Quarter turns and a new side length, the same for a latent and, ``factor`` times as large, for its image."""

    turns: int
    side: int
    """Of the latent."""

    def __call__(self, x: Tensor, factor: int = 1) -> Tensor:
        """x [B,C,H,H] -> [B,C,side*factor,side*factor], bilinear and antialiased."""
        x, side = x.rot90(self.turns, (2, 3)), self.side * factor
        return x if x.shape[-1] == side else F.interpolate(x, (side, side), mode="bilinear", antialias=True)


def random_change(side: int) -> Change:
    """Any turn, and any side of a latent from a quarter of ``side`` (at least 1) to all of it; never no change."""
    smallest = max(1, round(SMALLEST * side))
    number = 4 * (side - smallest + 1)
    pick = int(torch.randint(1, number, ()))  # 0 would be no turn at full size
    return Change(pick % 4, side - pick // 4)
