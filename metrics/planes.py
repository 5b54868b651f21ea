"""Masks as one stack of planes [N,H,W] of booleans, which is what scipy.ndimage labels and dilates in one call."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metrics.reconstruction import as_mask

PLUS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
"""A pixel and its 4 neighbours."""
SQUARE = np.ones((3, 3), bool)
"""A pixel and its 8 neighbours."""


def as_planes(masks: Tensor) -> NDArray[np.bool_]:
    """[N,H,W] bool of masks [N,H,W] or [N,1,H,W]: bool, integers (0 is background) or probabilities (above one half).

    Raises:
        ValueError: masks of another shape.
    """
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.ndim != 3:
        raise ValueError(f"masks need the shape [N,H,W] or [N,1,H,W], got {tuple(masks.shape)}")
    return as_mask(masks).cpu().numpy()


def as_pair(pred: Tensor, target: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The planes of two stacks of masks, which are compared one by one.

    Raises:
        ValueError: the two shapes differ or are no masks.
    """
    if pred.shape != target.shape:
        raise ValueError(f"masks to compare need one shape, got {tuple(pred.shape)} and {tuple(target.shape)}")
    return as_planes(pred), as_planes(target)


def bits(masks: Tensor) -> Tensor:
    """[N,P+1] float32 rows of 0 and 1: the pixels of masks [N,H,W], and a pixel that only empty masks have.

    Dot products of such rows are intersections, exact in float32 below 2^24 pixels. The added pixel makes two empty
    masks agree and an empty one share nothing with the rest, so that no ratio has to know of them.
    """
    flat = as_mask(masks).flatten(1)                                            # [N,P]
    return torch.cat([flat, ~flat.any(1, keepdim=True)], 1).float()
