"""Moved and resized versions of a few masks, made once, so that their latents can be cached."""

import numpy as np

from data.fit import area_resize
from data.masks import MaskSet
from metrics.components import label
from metrics.geometry import SPECK, recaptioned
from metrics.planes import SQUARE

_RESIZE = 1.4  # at most so many times larger or smaller


def with_versions(masks: MaskSet, number: int, seed: int) -> MaskSet:
    """The masks as they are, then ``number - 1`` versions of each, resized and moved within the frame, nothing cut off.

    Captions of geometry are made anew, other prompts stay.

    The draws depend on ``seed`` and the masks alone.
    """
    if number == 1:
        return masks
    draw = np.random.default_rng(seed)
    images = [masks.images, *(np.stack([moved(mask, draw) for mask in masks.images]) for _ in range(number - 1))]
    prompts = masks.prompts + [prompt for own in images[1:] for prompt in recaptioned(own, masks.prompts)]
    return MaskSet(np.concatenate(images), prompts, masks.names * number)


def pieces(planes: np.ndarray, pixels: int) -> int:
    """Pieces of masks [1,h,w] of 0/1, without what is a speck in an image of so many pixels (see metrics.geometry)."""
    labels, _ = label(planes > 0, SQUARE)
    return int((np.bincount(labels.ravel())[1:] >= SPECK * pixels).sum())


def moved(mask: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """One version of a mask [H,W] of 0/1, in as many pieces: what its drawn size would break is only moved. An empty
    one stays."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask
    piece = mask[None, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    frame, size = np.array(mask.shape), np.array(piece.shape[1:])
    factor = np.exp(draw.uniform(-1, 1) * np.log(_RESIZE))
    sides = np.maximum(1, np.round(size * min(factor, (frame / size).min()))).astype(int)
    resized = area_resize(piece, *sides)
    if pieces(resized, mask.size) != pieces(piece, mask.size):  # lines of a pixel break when they shrink
        resized = piece
    height, width = resized.shape[1:]
    y, x = (int(draw.integers(0, room + 1)) for room in frame - (height, width))
    version = np.zeros_like(mask)
    version[y : y + height, x : x + width] = resized[0]
    return version
