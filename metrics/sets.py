"""Two numbers about a set of masks: how undecided its pixels are, and how alike its masks are."""

import torch
from torch import Tensor

from metrics.planes import bits

GREY = (0.1, 0.9)


def grey_share(p: Tensor) -> float:
    """Share of probabilities (any shape) strictly between 0.1 and 0.9: what an average of several masks looks like."""
    return float(((p > GREY[0]) & (p < GREY[1])).double().mean())


def mean_pairwise_iou(masks: Tensor, chunk: int = 1024) -> float:
    """Mean IoU over all pairs of different rows of masks [N,H,W]; two empty masks have IoU 1.

    High where a model repeats itself: compare it with that of as many real masks.

    Raises:
        ValueError: fewer than two masks.
    """
    if masks.ndim != 3 or len(masks) < 2:
        raise ValueError(f"pairs need masks of the shape [N,H,W] with N of 2 or more, got {tuple(masks.shape)}")
    total = torch.zeros((), dtype=torch.float64)
    for left in masks.split(chunk):
        a = bits(left)                                                          # [n,P+1]
        for right in masks.split(chunk):
            b = bits(right)
            both = a @ b.T                                                      # [n,m] intersections
            total += (both / (a.sum(1, keepdim=True) + b.sum(1) - both)).sum(dtype=torch.float64)
    n = len(masks)
    return float((total - n) / (n * (n - 1)))                                   # a mask has IoU 1 with itself
