"""3x3 convolutions between many channels by a quarter of the products: Winograd's F(4x4, 3x3)."""

import math
import platform
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
"""Where polynomials are evaluated, infinity besides. In fp32 these leave half of the error of the usual 0, 1, -1, 2,
-2, since their powers are nearer to each other."""
TILE = 4
SEEN = TILE + 2
"""Values along an axis that a tile of the answer depends on, and products for it, where the convolution takes 12."""
CHANNELS = 32
"""From how many on it is faster (the harmonic mean of both sides) for one tile, and how many more for each doubling of
the longer axis, as measured (docs/speed.md)."""
LARGEST = 32
"""Pixels along an axis that were measured. The transforms of more would take over."""


@cache
def products_keep_up() -> bool:
    """Whether matrix products are as fast as convolutions here: MKL's stop at AVX2 on other makes than Intel's.

    torch's convolutions (oneDNN's) do not. Without MKL, as on ARM, nothing was measured.
    """
    if not torch.backends.mkl.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return True
    info = Path("/proc/cpuinfo")  # on Windows the name has the maker's
    return "GenuineIntel" in (info.read_text(encoding="utf-8") if info.exists() else platform.processor())


def pays(x: Tensor, out_channels: int) -> bool:
    """Whether :func:`by_tiles` takes x [B,C,H,W], and is faster than a convolution on this machine."""
    rows, channels, height, width = x.shape
    one = height == width == TILE
    if not products_keep_up() or rows < 2 or height % TILE or width % TILE or max(height, width) > LARGEST:
        return False  # for a single image, reading four times the filters takes longer than using them
    if x.is_contiguous() and not one:
        return False  # in torch's own format, putting what many tiles see in order costs what they save
    least = CHANNELS * math.log2(max(height, width) / 2)
    return 2 * channels * out_channels >= least * (channels + out_channels)


def tile_matrices() -> tuple[Any, Any, Any]:
    """Of one axis, as arrays of fp64: for what a tile sees [6,6], for filters [6,3], and back to the tile [4,6].

    With x of 6 and w of 3 values: back @ ((filters @ w) * (seen @ x)) is sum_k w[k] x[i + k] for i = 0 ... 3 (Lavin &
    Gray 2016, arXiv 1509.09308, section 4). They are Toom and Cook's for products of polynomials, transposed.
    """
    seen, filters, back = (np.zeros(shape) for shape in ((SEEN, SEEN), (SEEN, 3), (TILE, SEEN)))
    for place, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        seen[place, :-1] = np.poly(others)[::-1]  # coefficients of the polynomial with these roots, constant first
        filters[place] = point ** np.arange(3) / np.prod(point - np.array(others))
        back[:, place] = point ** np.arange(TILE)
    seen[-1], filters[-1, -1], back[-1, -1] = np.poly(POINTS)[::-1], 1, 1  # infinity
    return seen, filters, back


# Arrays are kept, not tensors: those would be of the mode or the device that the first call happened to be in.
@cache
def axis(size: int) -> Any:
    """What the tiles of an axis of ``size`` values see, padded with a zero at each end, fp64 [6T,size]."""
    tiles = np.zeros((SEEN, size // TILE, size + 2))
    for tile in range(size // TILE):
        tiles[:, tile, TILE * tile : TILE * tile + SEEN] = tile_matrices()[0]
    return tiles[:, :, 1:-1].reshape(-1, size)


@cache
def transforms(height: int, width: int, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Of columns [6S,H], of rows [6T,W], and back to a tile [4,6]."""
    return as_dtype(dtype, axis(height), axis(width), tile_matrices()[2])


@cache
def of_one_tile(dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Of both axes of a single tile at once [36,16], of filters [36,9], and back to the tile [16,36]."""
    _, filters, back = tile_matrices()
    return as_dtype(dtype, *(np.kron(x, x) for x in (axis(TILE), filters, back)))


def as_dtype(dtype: torch.dtype, *arrays: Any) -> tuple[Any, ...]:
    return tuple(x.astype(np.float64 if dtype == torch.float64 else np.float32) for x in arrays)


def tile_filters(weight: Tensor) -> Tensor:
    """weight [C',C,3,3] -> [36,C',C]."""
    taps = weight.permute(2, 3, 0, 1).reshape(9, -1)
    by_taps = torch.from_numpy(of_one_tile(weight.dtype)[1])
    return (by_taps @ taps).view(SEEN**2, *weight.shape[:2])


def by_tiles(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution of x [B,C,H,W], padded with zeros, by ``tile_filters`` [36,C',C] -> [B,C',H,W].

    H and W are multiples of 4. The answer of more than one tile is in channels last, that of one as x is.
    """
    rows, channels, height, width = x.shape
    down, across = height // TILE, width // TILE  # tiles, S and T
    if down == across == 1:
        seen, _, back = map(torch.from_numpy, of_one_tile(x.dtype))
        pixels = x.permute(2, 3, 0, 1).reshape(TILE**2, -1)  # [HW,BC]
        products = torch.bmm((seen @ pixels).view(SEEN**2, rows, channels), filters.mT).view(SEEN**2, -1)  # [36,BC']
        if x.is_contiguous():
            y = (products.mT @ back.mT).view(rows, -1, height, width)
        else:
            y = (back @ products).view(height, width, rows, -1).permute(2, 3, 0, 1)
            y = y.contiguous(memory_format=torch.channels_last)
    else:  # one axis, then the other, in an order in which only the input and the answer have to be moved
        by_height, by_width, back = map(torch.from_numpy, transforms(height, width, x.dtype))
        columns = x.permute(3, 2, 0, 1).reshape(width, height, -1)  # [W,H,BC]
        seen = torch.matmul(by_height, columns).view(width, SEEN, -1)  # [W,6,SBC]
        seen = torch.matmul(by_width, seen.transpose(0, 1))  # [6,6T,SBC]
        products = torch.bmm(seen.view(SEEN**2, -1, channels), filters.mT).view(SEEN, -1)  # [6,6TSBC']
        tiles = torch.matmul(back, (back @ products).view(TILE, SEEN, -1))  # [4,4,TSBC']
        tiles = tiles.view(TILE, TILE, across, down, rows, -1).permute(4, 3, 0, 2, 1, 5)  # [B,S,4,T,4,C']
        y = tiles.reshape(rows, height, width, -1).permute(0, 3, 1, 2)
    return y if bias is None else y.add_(bias[:, None, None])
