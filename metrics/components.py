"""Connected components: pieces of foreground, and holes in it.

Foreground is joined over 8 neighbours and background over 4, the pair for which a closed outline separates inside from
outside (Rosenfeld 1970), so pieces minus holes is the Euler number.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from metrics.planes import PLUS, SQUARE, as_pair, as_planes
from metrics.reconstruction import MeanOfMasks


def count_components(masks: Tensor) -> Tensor:
    """[N] long, pieces of foreground (8-connected) of masks [N,H,W] or [N,1,H,W]."""
    return torch.from_numpy(_count(as_planes(masks), SQUARE))


def count_holes(masks: Tensor) -> Tensor:
    """[N] long, pieces of background (4-connected) that do not reach the outside of masks [N,H,W] or [N,1,H,W]."""
    outside = np.pad(~as_planes(masks), ((0, 0), (1, 1), (1, 1)), constant_values=True)
    return torch.from_numpy(_count(outside, PLUS) - 1)


def label(planes: NDArray[np.bool_], neighbours: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """The pieces of all planes [N,H,W], numbered from 1 in one call: no neighbour lies in another plane."""
    within = np.zeros((3, 3, 3), bool)
    within[1] = neighbours
    return ndimage.label(planes, within)


def _count(planes: NDArray[np.bool_], neighbours: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N] pieces of each plane [N,H,W]."""
    labels, pieces = label(planes, neighbours)
    owner = np.zeros(pieces + 1, np.int64)
    owner[labels] = np.arange(len(planes))[:, None, None]                       # label -> plane
    return np.bincount(owner[1:], minlength=len(planes))


def component_error(pred: Tensor, target: Tensor) -> Tensor:
    """[B] float64, absolute difference of the numbers of pieces of masks [B,H,W] or [B,1,H,W].

    Raises:
        ValueError: the shapes differ or are no masks.
    """
    p, q = as_pair(pred, target)
    return torch.from_numpy(np.abs(_count(p, SQUARE) - _count(q, SQUARE))).double()


class MaskComponentError(MeanOfMasks):
    """Mean over masks of ``component_error``."""

    higher_is_better = False

    def scores(self, pred: Tensor, target: Tensor) -> Tensor:
        return component_error(pred, target).to(self.score_sum.device)


class MaskComponentMiss(MeanOfMasks):
    """Share of masks whose number of pieces differs from that of their target."""

    higher_is_better = False

    def scores(self, pred: Tensor, target: Tensor) -> Tensor:
        return (component_error(pred, target) > 0).double().to(self.score_sum.device)
