"""A small network that reads off a latent what its mask shows, and so can correct a latent that shows something else.

How many pieces a mask has is a number without a gradient, and the mean squared error of a latent hardly changes with
one piece more or less. The reader learns the words that are true of training masks and of masks that the network drew
and that it has corrected itself (they are computed from the masks, so there is no doubt about them). A latent that
shows something else than it was asked for then goes small steps down the gradient of what the reader misses in it:
guidance by a classifier (Dhariwal & Nichol 2021, arXiv 2105.05233, eq. 10), not at every noise level but at the end, on
the single step's latent itself. A reader can be deceived, and a mask cannot: when drawing, the mask is computed after
each step, and what it shows says whether that was the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import ResBlock
from models.norm import GroupNorm

UNKNOWN = -1
"""Number of a word that is not known; it teaches nothing."""
PUSH = 0.2
"""Root mean square of a correction's step; latents have a standard deviation of 1."""
CONTENT = 0.003
"""A gradient of this root mean square, over the latent, gets half of that step; a smaller one, less."""
SIDE = 8
"""Latents of twice this side, or more, are read at half of theirs."""


class Reader(nn.Module):
    """Latents [B,C,h,w] -> logits [B,K] of each property of which the mask has one of K words."""

    def __init__(self, latent_shape: tuple[int, int, int], words: Sequence[int], width: int, blocks: int = 5) -> None:
        super().__init__()
        self.words = list(words)
        channels, *sides = latent_shape
        halved = min(sides) >= 2 * SIDE
        first = nn.Conv2d(channels + 2, width, 4 if halved else 3, stride=2 if halved else 1, padding=1)
        # Pieces can only be counted by looking at all of them: five blocks see 23 positions at once.
        self.body = nn.Sequential(
            first, *[ResBlock(width, width) for _ in range(blocks)], GroupNorm(width, act=True),
        )
        self.head = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, sum(words)))

    def forward(self, z: Tensor) -> list[Tensor]:
        y, x = (torch.linspace(-1, 1, side, device=z.device, dtype=z.dtype) for side in z.shape[2:])
        where = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(z), -1, -1, -1)  # [B,2,h,w]
        h = self.body(torch.cat([z, where], dim=1))
        return list(self.head(torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1)).float().split(self.words, dim=1))

    def error(self, z: Tensor, words: Tensor) -> Tensor:
        """Cross-entropy of words [B,properties], numbers or UNKNOWN: a mean over the rows whose word is known (0 if
        none is), summed over the properties.
        """
        known = (words != UNKNOWN).sum(0).clamp_min(1)  # [properties]
        return (cross_entropies(self(z), words) / known).sum()

    def corrected(
        self, z: Tensor, words: Tensor, steps: int, shown: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Tensor:
        """Latents [B,C,h,w] after up to ``steps`` steps towards what ``words`` [B,properties] say; rows of which none
        is known stay as they are. No row depends on another one. Works in inference mode, too.

        ``shown``: from the numbers of some rows [n] and their latents [n,C,h,w] to the words [n,properties] that their
        masks show. A row takes no further step once these are what it is asked for, and ends as it showed most of them
        first. None: every row takes every step.
        """
        with torch.inference_mode(False), torch.no_grad():
            z, words = z.clone(), words.clone()
            if shown is None:
                for _ in range(steps):
                    z = self.pushed(z, words)
                return z
            best, most = z.clone(), torch.full((len(z),), -1, device=z.device)
            rows = (words != UNKNOWN).any(1).nonzero().flatten()
            for step in range(steps + 1):
                if not len(rows):
                    break
                if step:
                    z[rows] = self.pushed(z[rows], words[rows])
                right = ((shown(rows, z[rows]) == words[rows]) | (words[rows] == UNKNOWN)).sum(1)
                better = rows[right > most[rows]]
                best[better], most[rows] = z[better], torch.maximum(right, most[rows])
                rows = rows[most[rows] < words.shape[1]]
            return best

    def pushed(self, z: Tensor, words: Tensor) -> Tensor:
        """Latents [B,C,h,w] one step nearer to what ``words`` [B,properties] say."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            [gradient] = torch.autograd.grad(cross_entropies(self(z), words).sum(), z)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        return z.detach() - PUSH * gradient / (size + CONTENT)


def cross_entropies(logits: list[Tensor], words: Tensor) -> Tensor:
    """Sums over the rows whose word is known: [properties]."""
    return torch.stack([
        F.cross_entropy(one, words[:, i], ignore_index=UNKNOWN, reduction="sum") for i, one in enumerate(logits)
    ])


def agreement(shown: Tensor, asked: Tensor) -> Tensor:
    """Share of the rows [B,properties], of those that are asked for something, whose words are all alike: a scalar."""
    known = asked[:, 0] != UNKNOWN
    return ((shown == asked).all(1) & known).sum() / known.sum().clamp_min(1)
