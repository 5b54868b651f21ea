"""A small network that reads off a latent what its mask shows, so that a single step can learn what it did not draw.

How many pieces a mask has is a number without a gradient, and the mean squared error of a latent hardly changes with
one piece more or less. The reader learns the words that are true of training masks and of those that the network has
just drawn (they are computed from the masks, so there is no doubt about them); the network learns from the reader as a
generator from an auxiliary classifier (Odena et al. 2017, arXiv 1610.09585), but drawn masks teach the reader too, so
that what deceives it is soon read as what it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from models.blocks import ResBlock
from models.norm import GroupNorm

UNKNOWN = -1
"""Number of a word that is not known; it teaches nothing."""


class Reader(nn.Module):
    """Latents [B,C,h,w] -> logits [B,K] of each property of which the mask has one of K words."""

    def __init__(self, channels: int, words: Sequence[int], width: int, blocks: int = 5) -> None:
        super().__init__()
        self.words = list(words)
        # Pieces can only be counted by looking at all of them: five blocks see 23 positions of a latent at once.
        self.body = nn.Sequential(
            nn.Conv2d(channels + 2, width, 3, padding=1), *[ResBlock(width, width) for _ in range(blocks)],
            GroupNorm(width, act=True),
        )
        self.head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, sum(words)))

    def forward(self, z: Tensor) -> list[Tensor]:
        y, x = (torch.linspace(-1, 1, side, device=z.device, dtype=z.dtype) for side in z.shape[2:])
        where = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(z), -1, -1, -1)  # [B,2,h,w]
        h = self.body(torch.cat([z, where], dim=1))
        return list(self.head(torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1)).float().split(self.words, dim=1))

    def error(self, z: Tensor, words: Tensor) -> Tensor:
        """Cross-entropy of words [B,properties], numbers or UNKNOWN, summed over the properties: a scalar."""
        return cross_entropy(self(z), words)

    def missed(self, z: Tensor, words: Tensor) -> Tensor:
        """As ``error``, but what learns from it is z alone."""
        state = {name: value.detach() for name, value in self.state_dict(keep_vars=True).items()}
        return cross_entropy(functional_call(self, state, (z,)), words)


def cross_entropy(logits: list[Tensor], words: Tensor) -> Tensor:
    """Mean over the rows whose word is known (0 if none is), summed over the properties."""
    known = (words != UNKNOWN).sum(0).clamp_min(1)  # [properties]
    sums = [
        F.cross_entropy(one, words[:, i], ignore_index=UNKNOWN, reduction="sum") for i, one in enumerate(logits)
    ]
    return (torch.stack(sums) / known).sum()


def agreement(shown: Tensor, asked: Tensor) -> Tensor:
    """Share of the rows [B,properties], of those that are asked for something, whose words are all alike: a scalar."""
    known = asked[:, 0] != UNKNOWN
    return ((shown == asked).all(1) & known).sum() / known.sum().clamp_min(1)
