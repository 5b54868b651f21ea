"""Boundary F1: how much of two outlines lies within a few pixels of each other.

Csurka, Larlus & Perronnin 2013 (per image, as here); the F-measure of DAVIS (Perazzi et al. 2016) is the same idea.
IoU hardly feels a ragged outline of a large mask; this score feels nothing else.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from metrics.planes import PLUS, as_pair
from metrics.reconstruction import MeanOfMasks


def outline(planes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[N,H,W] foreground pixels that have a background pixel among their 4 neighbours; outside is background."""
    return planes & ~ndimage.binary_erosion(planes, PLUS[None])


def boundary_f1(pred: Tensor, target: Tensor, tolerance: float = 2.0) -> Tensor:
    """[B] float64 F1 of the outlines of masks [B,H,W] or [B,1,H,W]; 1 where both are empty, 0 where one is.

    Precision is the share of the first outline's pixels with a pixel of the second within ``tolerance`` pixels
    (Euclidean, between pixel centres), recall the share the other way round.

    Raises:
        ValueError: the shapes differ or are no masks, or the tolerance is negative.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance is {tolerance}, but it must be zero or a positive number of pixels")
    p, q = (outline(planes) for planes in as_pair(pred, target))                # [B,H,W]
    reach = math.floor(tolerance)
    offsets = np.arange(-reach, reach + 1)
    disk = offsets[:, None] ** 2 + offsets**2 <= tolerance**2                   # [2r+1,2r+1]
    near_p, near_q = (ndimage.binary_dilation(edge, disk[None]) for edge in (p, q))

    count_p, count_q = p.sum((1, 2)), q.sum((1, 2))                             # [B]
    precision = (p & near_q).sum((1, 2)) / np.maximum(count_p, 1)
    recall = (q & near_p).sum((1, 2)) / np.maximum(count_q, 1)
    both = precision + recall
    score = np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)
    return torch.from_numpy(np.where(count_p + count_q == 0, 1.0, score))


class MaskBoundaryF1(MeanOfMasks):
    """Mean over masks of ``boundary_f1``."""

    def __init__(self, tolerance: float = 2.0) -> None:
        super().__init__()
        self.tolerance = tolerance

    def scores(self, pred: Tensor, target: Tensor) -> Tensor:
        return boundary_f1(pred, target, self.tolerance).to(self.score_sum.device)
