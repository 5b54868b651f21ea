"""A mask at several times its size, or as a path, with a smooth outline: no new detail, but no stairs either."""

from functools import cache
from typing import Any

import numpy as np

from data.fit import area_resize

BLUR = 0.9
"""Standard deviation of the Gaussian, in pixels of the mask: less leaves stairs, more cuts off what is thin."""
PUSH = 1.0
"""What a pixel that came out wrong is made more of what it is, in each round."""
ROUNDS = 30
FINE = 8
"""Points of a path's grid on a side of a pixel."""
STRAIGHT = 0.02
"""Pixels by which a path may cut a corner short, so that a straight line has two points."""
_TIE = 1e-9  # where the smooth mask is one half but for rounding, it is foreground


def enlarged(mask: np.ndarray, times: int) -> np.ndarray:
    """A mask [H,W] of 0/1 -> [times*H,times*W] of 0/1, which ``area_resize`` shrinks to the same mask again."""
    return mask if times == 1 else _above(_smooth(mask, times))


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The closed lines around a mask [H,W] of 0/1 and its holes, each as its corners [n,2] (x, y) in pixels of the
    mask, 0 at its left and top edge: what lies within an odd number of them is foreground.
    """
    import cv2
    from contourpy import contour_generator

    framed = np.pad(_smooth(mask, FINE), 1, mode="edge")
    for edge in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
        edge[:] = np.minimum(edge, 1 - edge)  # foreground ends half way to it, at the edge of the mask
    found: Any = contour_generator(z=framed).lines(0.5 - _TIE)  # a list, unless it is asked for another type
    lines = [(line[:-1] - 0.5) / FINE for line in found]
    simple = [cv2.approxPolyDP(line.astype(np.float32), STRAIGHT, True)[:, 0] for line in lines]
    return [np.clip(line, 0, mask.shape[::-1]) for line in simple if len(line) > 2]


def _smooth(mask: np.ndarray, times: int) -> np.ndarray:
    """A mask [H,W] of 0/1 -> float64 [times*H,times*W], of which what is above one half is foreground.

    It is the mask, blurred by a Gaussian. That cuts off corners and thin lines, so pixels of which it leaves less than
    half are raised, pixels that it fills lowered, and so on until there are none: smoothing within what the pixels
    allow, as Whitaker (2000, "Reducing aliasing artifacts in iso-surfaces of binary volumes") does it for surfaces, by
    the back-projection of Irani & Peleg (1991). A pixel that is still wrong after ``ROUNDS`` (few are) is a square.
    """
    down, across = (_blur(side, times) for side in mask.shape)
    raised = mask.astype(np.float64)
    for _ in range(ROUNDS):
        smooth = (across @ (down @ raised).T).T
        wrong = area_resize(_above(smooth)[None], *mask.shape)[0] != mask
        if not wrong.any():
            return smooth
        raised += PUSH * (mask - 0.5) * wrong
    return np.where(_repeated(wrong, times), _repeated(mask, times), smooth)


def _above(smooth: np.ndarray) -> np.ndarray:
    return (smooth >= 0.5 - _TIE).astype(np.uint8)


@cache
def _blur(side: int, times: int) -> Any:
    """[times*side,side]: what a row of pixels gives after they are repeated and blurred; beyond its ends it goes on.

    Sparse, since a product with a dense matrix starts one thread per core for each small mask.
    """
    from scipy.sparse import csr_array

    places = (np.arange(times * side) + 0.5) / times - 0.5
    reach = int(np.ceil(4 * BLUR))
    weights = np.zeros((times * side, side))
    for pixel in range(-reach, side + reach):
        weights[:, np.clip(pixel, 0, side - 1)] += _share(places - pixel)
    return csr_array(weights / weights.sum(axis=1, keepdims=True))


def _share(distance: np.ndarray) -> np.ndarray:
    """How much of a Gaussian around a place falls on a pixel whose centre is so far away."""
    from scipy.special import ndtr

    return ndtr((distance + 0.5) / BLUR) - ndtr((distance - 0.5) / BLUR)


def _repeated(pixels: np.ndarray, times: int) -> np.ndarray:
    return pixels.repeat(times, axis=0).repeat(times, axis=1)
