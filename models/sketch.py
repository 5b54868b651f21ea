"""Sketches as conditions: the encoder that reads them, and the ones that a training makes of its own masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import ResBlock

CELL = 4  # pixels of a sketch, each way, for one of the latent
BLOCKS = 2  # residual blocks of a level
WOBBLE = 1 / 24  # of the mask's side: the largest standard deviation of a hand's error
DEGREES = (1, 2, 4, 8)
"""Of detail: the cells of made sketches, in pixels."""
LINE = 1 / 64  # of the mask's side: width of a thin outline, and half of a thick one


class SketchEncoder(nn.Module):
    """A sketch at the sizes of a network's levels, to be added to its features (T2I-Adapter, Mou et al. 2023, arXiv
    2302.08453: it works beside a network that is not trained with it). Answers 0 before it is trained.
    """

    def __init__(self, width: int, channels: Sequence[int]) -> None:
        """``width``: its own channels; ``channels``: those of each level, each of half the size of the one before."""
        super().__init__()
        self.first = nn.Conv2d(CELL**2, width, 3, padding=1)
        self.levels = nn.ModuleList(
            nn.Sequential(*(ResBlock(width, width) for _ in range(BLOCKS))) for _ in channels
        )
        self.last = nn.ModuleList(nn.Conv2d(width, wide, 1, bias=False) for wide in channels)
        for head in self.last:
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]  # a convolution's

    def forward(self, sketch: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """sketch [B,1,H,W] from 0 to 1, size (h,w) of the first level -> [B,C,h,w], [B,C',h/2,w/2] and so on.

        A row that is 0 everywhere has no sketch: it gets 0.
        """
        seen = sketch.flatten(1).any(1)[:, None, None, None]
        pixels = F.adaptive_avg_pool2d(sketch, (CELL * size[0], CELL * size[1]))
        h, found = self.first(F.pixel_unshuffle(pixels, CELL)), []
        for i, (level, head) in enumerate(zip(self.levels, self.last, strict=True)):
            h = level(F.avg_pool2d(h, 2) if i else h)
            found.append(head(h) * seen)
        return found


def looked_at(masks: Tensor, side: int) -> Tensor:
    """Masks [B,1,H,W] of 0 and 1, no larger than an encoder of sketches looks at them beside latents of ``side``."""
    most = CELL * side
    return masks if masks.shape[-1] <= most else (F.adaptive_avg_pool2d(masks, most) >= 0.5).to(masks)


def rough_sketch(masks: Tensor) -> Tensor:
    """What somebody might draw to ask for masks [B,1,H,W] of 0 and 1: [B,1,H,W] of 0 and 1, by torch's random stream.

    A mask moved here and there as by an unsteady hand, in one of four degrees of detail; in every second row only its
    outline, thin or thick. What is too thin for its degree of detail vanishes, in some rows all of it.
    """
    rows, side = len(masks), masks.shape[-1]
    order = torch.randperm(rows, device=masks.device)  # or the first rows of a batch would always have all details
    moved = F.grid_sample(masks, _unsteady(masks), align_corners=False)[order]
    level = 0.25 + 0.25 * torch.rand(rows, 1, 1, 1, device=masks.device)  # above it, a cell is drawn
    parts = []
    first = int(torch.randint(len(DEGREES), ())) if rows % len(DEGREES) else 0  # or it would be of the spare rows
    for part, coarse in zip(moved.tensor_split(len(DEGREES)), DEGREES[first:] + DEGREES[:first], strict=True):
        cells = F.adaptive_avg_pool2d(part, max(1, side // coarse))
        parts.append(F.interpolate(cells, masks.shape[-2:], mode="bilinear"))
    filled = (torch.cat(parts)[order.argsort()] > level).to(masks)
    thin = max(1, round(side * LINE))
    kind = torch.randint(4, (rows, 1, 1, 1), device=masks.device)  # 0 and 1: filled
    return torch.where(kind == 3, outline(filled, 2 * thin), torch.where(kind == 2, outline(filled, thin), filled))


def outline(masks: Tensor, reach: int) -> Tensor:
    """The pixels of masks [B,1,H,W] that are within ``reach`` of background, which lies beyond the frame too."""
    background = F.max_pool2d(F.pad(1 - masks, (reach,) * 4, value=1.0), 2 * reach + 1, stride=1)
    return masks * background


def _unsteady(masks: Tensor) -> Tensor:
    """Where each pixel of masks [B,1,H,W] comes from, for grid_sample, to which a side is 2: [B,H,W,2].

    Each row is off by its own amount.
    """
    rows = len(masks)
    identity = torch.eye(2, 3, device=masks.device, dtype=masks.dtype).expand(rows, 2, 3)
    still = F.affine_grid(identity, list(masks.shape), align_corners=False)
    amount = 2 * WOBBLE * torch.rand(rows, 1, 1, 1, device=masks.device)
    coarse = amount * torch.randn(rows, 2, 4, 4, device=masks.device)
    return still + F.interpolate(coarse, masks.shape[-2:], mode="bicubic").permute(0, 2, 3, 1)
