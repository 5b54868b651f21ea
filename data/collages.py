"""Pictures of one to seven pieces of icons, set apart, with captions of geometry: to learn to count, size and place.

They are made anew when they are read, always the same ones.
"""

import numpy as np
import torch
from scipy import ndimage

from data.fit import area_resize
from data.masks import MaskSet
from data.versions import moved
from metrics.components import label
from metrics.geometry import describe
from metrics.grammar import SHAPES
from metrics.planes import SQUARE

MOST = 7
"""Pieces in a picture: from one to so many, each number as often as the others."""
WHOLE = 0.25
"""Share of the pictures that are a whole icon, moved and resized."""
_SMALLEST_PIECE = 1 / 64  # of an icon: smaller ones say little about a shape
_SIDES = (1 / 8, 9 / 10)  # longer side of a piece, of the frame; of n pieces, the larger one over the root of n
_VARIES = (0.85, 1.15)    # the pieces of a picture, around one size
_APART = 2                # pixels of background between two pieces
_TRIES = 40               # places tried before a piece shrinks
_SHRINK = 0.8
_CHUNK = 1024  # icons taken apart at once

Piece = np.ndarray  # [h,w] uint8 of 0/1


def collages(icons: np.ndarray, number: int, seed: int) -> MaskSet:
    """``number`` pictures [number,S,S] with captions, of the pieces of icons [N,S,S] of 0/1; S is 16 pixels or more."""
    draw = np.random.default_rng(seed)
    pool = pieces_by_shape(icons)
    images: list[np.ndarray] = []
    while len(images) < number:
        whole = draw.random() < WHOLE
        image = moved(icons[draw.integers(len(icons))], draw) if whole else collage(pool, icons.shape[1], draw)
        if image.any():
            images.append(image)
    stacked = np.stack(images)
    captions = [geometry.caption for geometry in describe(torch.from_numpy(stacked))]
    return MaskSet(stacked, captions, [f"collages64/{i}" for i in range(number)])


def pieces_by_shape(icons: np.ndarray) -> list[list[Piece]]:
    """The pieces of icons [N,S,S] of 0/1, each cropped, for every shape of metrics/geometry.py that there is."""
    found: dict[str, list[Piece]] = {shape: [] for shape in SHAPES}
    for start in range(0, len(icons), _CHUNK):
        labels, _ = label(icons[start : start + _CHUNK] > 0, SQUARE)
        boxes = ndimage.find_objects(labels)
        pieces = [labels[box][0] == number for number, box in enumerate(boxes, 1)]
        pieces = [piece.astype(np.uint8) for piece in pieces if piece.sum() >= _SMALLEST_PIECE * icons[0].size]
        planes = np.zeros((len(pieces), *icons.shape[1:]), np.uint8)
        for plane, piece in zip(planes, pieces, strict=True):
            plane[: piece.shape[0], : piece.shape[1]] = piece
        for piece, geometry in zip(pieces, describe(torch.from_numpy(planes)), strict=True):
            found[geometry.shape].append(piece)
    return [own for own in found.values() if own]


def collage(pool: list[list[Piece]], side: int, draw: np.random.Generator) -> np.ndarray:
    """Pieces of one shape, or one piece again and again, turned by right angles and mirrored: [side,side] of 0/1."""
    number = int(draw.integers(1, MOST + 1))
    alike = pool[draw.integers(len(pool))]
    one = alike[draw.integers(len(alike))] if draw.random() < 0.5 else None
    smallest, largest = side * _SIDES[0], side * max(_SIDES[0], _SIDES[1] / np.sqrt(number))
    typical = np.exp(draw.uniform(np.log(smallest), np.log(largest)))
    span = side * draw.uniform(0.5, 1.0)
    low = draw.uniform(0, side - span, 2)  # of the square that the pieces keep to, so that places differ
    plane = np.zeros((side, side), np.uint8)
    for _ in range(number):
        piece = alike[draw.integers(len(alike))] if one is None else one
        longest = typical * draw.uniform(*_VARIES)
        while longest >= smallest * _VARIES[0] and not put(plane, turned(piece, draw), longest, low, span, draw):
            longest *= _SHRINK
    return plane


def turned(piece: Piece, draw: np.random.Generator) -> Piece:
    return np.rot90(piece, int(draw.integers(4)))[:, :: draw.choice((-1, 1))]


def put(
    plane: np.ndarray, piece: Piece, longest: float, low: np.ndarray, span: float, draw: np.random.Generator
) -> bool:
    """Add a piece whose longer side is ``longest`` pixels, within a square (the plane if it is too large for that) and
    apart from what is there; False, and nothing done, where no room was found or the piece fell apart at this size."""
    sides = np.maximum(2, np.round(np.array(piece.shape) * longest / max(piece.shape))).astype(int)
    small = area_resize(piece[None], *sides)[0]
    if (sides > plane.shape).any() or label(small[None] > 0, SQUARE)[1] != 1:
        return False
    low, high = low.astype(int), (low + span).astype(int) - sides
    if (high < low).any():
        low, high = np.zeros(2, int), np.array(plane.shape) - sides
    for y, x in draw.integers(low, high + 1, (_TRIES, 2)):
        around = plane[max(0, y - _APART) : y + sides[0] + _APART, max(0, x - _APART) : x + sides[1] + _APART]
        if not around.any():
            plane[y : y + sides[0], x : x + sides[1]] = small
            return True
    return False
