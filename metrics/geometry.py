"""What a mask shows, in words that are computed from it alone: "two small round blobs, upper left".

* **count**: pieces of foreground (8-connected), from one to five, then many. A piece below a thousandth of the image is
  a speck, and not looked at.
* **size**: the pieces' mean area as a share of the image: small below 1/25, large from 4/25, medium between.
* **shape**, that of most of the foreground: hollow if holes are a tenth of the filled piece or more; else long if the
  ellipse of its second moments is twice as long as wide; else round if the piece fills nine tenths of that ellipse (a
  disk 1, a square 0.95, a triangle 0.83); else uneven.
* **place** of the foreground's centre: its x and y cut at 2/5 and 3/5 of the image, the middle cell called centre.

Since both a caption and a generated mask go through the same function, whether a mask follows its caption is exact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metrics.components import label
from metrics.grammar import COUNTS, NOTHING, PLACES, SHAPES, SIZES, WORDS, Geometry, parse
from metrics.planes import PLUS, SQUARE, as_planes

_CHUNK = 2**22  # pixels labelled at once
SPECK = 1 / 1000
_SIZE_EDGES = (1 / 25, 4 / 25)
_PLACE_EDGES = (2 / 5, 3 / 5)
_HOLLOW, _LONG, _ROUND = 1 / 10, 2.0, 9 / 10


def describe(masks: Tensor) -> list[Geometry]:
    """The geometry of each of masks [N,H,W] or [N,1,H,W]."""
    some = max(1, _CHUNK // max(1, masks.shape[-2:].numel()))
    return [geometry for part in masks.split(some) for geometry in _described(as_planes(part))]


def _described(planes: NDArray[np.bool_]) -> Iterator[Geometry]:
    n, height, width = planes.shape
    labels, pieces = label(planes, SQUARE)
    plane, y, x = np.nonzero(labels)
    own = labels[plane, y, x] - 1                                               # [P] piece of each foreground pixel

    def per_piece(values: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        return np.bincount(own, values, minlength=pieces).astype(float)

    area = per_piece()
    mean_y, mean_x = per_piece(y + 0.5) / area, per_piece(x + 0.5) / area
    dy, dx = y + 0.5 - mean_y[own], x + 0.5 - mean_x[own]
    vy, vx = per_piece(dy**2) / area + 1 / 12, per_piece(dx**2) / area + 1 / 12  # a pixel is a unit square
    vxy = per_piece(dx * dy) / area
    spread = np.sqrt((vx - vy) ** 2 + 4 * vxy**2)
    longer, shorter = (vx + vy + spread) / 2, (vx + vy - spread) / 2            # squared half axes over 4
    holes = _holes(planes, labels, pieces)
    is_hollow, is_long = holes >= _HOLLOW * (area + holes), longer >= _LONG**2 * shorter
    is_round = area >= _ROUND * 4 * np.pi * np.sqrt(longer * shorter)
    shapes = np.select([is_hollow, is_long, is_round], [0, 1, 2], 3)            # [pieces] index into SHAPES
    owner = np.zeros(pieces, np.int64)
    owner[own] = plane
    kept = area >= SPECK * height * width
    for i in range(n):
        mine = np.flatnonzero(kept & (owner == i))
        if not len(mine):
            yield Geometry(NOTHING)
            continue
        total = area[mine].sum()
        share = total / len(mine) / (height * width)
        centre = (mean[mine] @ area[mine] / total / side for mean, side in ((mean_y, height), (mean_x, width)))
        row, column = (int(c >= _PLACE_EDGES[0]) + int(c > _PLACE_EDGES[1]) for c in centre)
        yield Geometry(
            COUNTS[min(len(mine), len(COUNTS)) - 1], SIZES[int(np.digitize(share, _SIZE_EDGES))],
            SHAPES[int(np.bincount(shapes[mine], area[mine]).argmax())], PLACES[row][column],
        )  # fmt: skip


def recaptioned(images: NDArray[np.uint8], prompts: list[str]) -> list[str]:
    """Prompts of masks [N,H,W] of 0/1: those that are captions of geometry made anew, the others as they are."""
    asked = [i for i, prompt in enumerate(prompts) if parse(prompt)]
    new = dict(zip(asked, describe(torch.from_numpy(images[asked])), strict=True)) if asked else {}
    return [new[i].caption if i in new else prompt for i, prompt in enumerate(prompts)]


def right_words(masks: Tensor, prompts: list[str]) -> dict[int, list[bool]]:
    """Row -> which of count, size, shape and place are as its caption says, for the rows whose prompts are captions.

    masks [N,H,W] or [N,1,H,W] of 0 and 1, with N prompts.
    """
    asked = {i: geometry for i, prompt in enumerate(prompts) if (geometry := parse(prompt))}
    drawn = describe(masks[list(asked)]) if asked else []
    return {
        i: [a == b for a, b in zip(astuple(one), astuple(two), strict=True)]
        for (i, one), two in zip(asked.items(), drawn, strict=True)
    }


def numbers(found: Sequence[Geometry | None]) -> Tensor:
    """[N,4] the number of each word in WORDS; -1 where there is none."""
    return torch.tensor([[-1] * len(WORDS) if one is None else one.numbers for one in found]).reshape(-1, len(WORDS))


def adherence(masks: Tensor, prompts: list[str]) -> dict[str, float]:
    """Shares of masks [N,H,W] that have the count, size, shape and place of their caption, and all four.

    Prompts that are no such captions are left out; nothing is answered where there are no others.
    """
    found = right_words(masks, prompts)
    if not found:
        return {}
    right = np.array(list(found.values()))                                      # [n,4]
    names = [f"{field.name}_right" for field in fields(Geometry)]
    return dict(zip(names, right.mean(0).tolist(), strict=True)) | {"all_right": float(right.all(1).mean())}


def are_captions(prompts: list[str]) -> bool:
    """True when most prompts are captions of geometry: words of a grammar, and no classes."""
    kinds = set(prompts)
    return 2 * sum(parse(prompt) is not None for prompt in kinds) > len(kinds)


def _holes(planes: NDArray[np.bool_], labels: NDArray[np.int64], pieces: int) -> NDArray[np.float64]:
    """[pieces] area of the holes of each piece: background that does not reach the outside of its mask."""
    holes, number = label(np.pad(~planes, ((0, 0), (1, 1), (1, 1)), constant_values=True), PLUS)
    outside = np.unique(holes[:, 0, 0])
    inner = holes[:, 1:-1, 1:-1].copy()
    inner[np.isin(inner, outside)] = 0
    areas = np.bincount(inner.ravel(), minlength=number + 1)
    at = np.flatnonzero(inner)
    numbers, first = np.unique(inner.ravel()[at], return_index=True)
    plane, y, x = np.unravel_index(at[first], inner.shape)
    around = labels[plane, y - 1, x] - 1                                        # its piece is above its first pixel
    return np.bincount(around, areas[numbers], minlength=pieces).astype(float)
