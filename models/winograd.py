"""3x3 convolutions between many channels by a quarter of the products: Winograd's F(4x4, 3x3)."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
"""Where polynomials are evaluated, infinity besides. In fp32 these leave half of the error of the usual 0, 1, -1, 2,
-2, since their powers are nearer to each other."""
TILE = 4
SEEN = TILE + 2
"""Values along an axis that a tile of the answer depends on, and products for it, where the convolution takes 12."""
CHANNELS = {True: 32, False: 64}
"""From how many on it is faster (the harmonic mean of both sides), for one tile and for more (docs/speed.md)."""
LARGEST = 32
"""Pixels along an axis that were measured. The transforms of more would take over."""


def pays(x: Tensor, out_channels: int) -> bool:
    """Whether :func:`by_tiles` takes x [B,C,H,W], and is faster than a convolution."""
    rows, channels, height, width = x.shape
    one = height == width == TILE
    if rows < 2 or height % TILE or width % TILE or max(height, width) > LARGEST:
        return False  # for a single image, reading four times the filters takes longer than using them
    if x.is_contiguous() and not one:
        return False  # in torch's own format, putting what many tiles see in order costs what they save
    return 2 * channels * out_channels >= CHANNELS[one] * (channels + out_channels)


def polynomial(roots: Tensor) -> Tensor:
    """Coefficients of the product of (x - root), lowest power first."""
    made = torch.ones(1, dtype=roots.dtype)
    for root in roots:
        made = F.pad(made, (1, 0)) - root * F.pad(made, (0, 1))
    return made


def tile_matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Of one axis, in fp64: for what a tile sees [6,6], for filters [6,3], and back to the tile [4,6].

    With x of 6 and w of 3 values: back @ ((filters @ w) * (seen @ x)) is sum_k w[k] x[i + k] for i = 0 ... 3 (Lavin &
    Gray 2016, arXiv 1509.09308, eq. 5). They are Toom and Cook's for products of polynomials, transposed.
    """
    points = torch.tensor(POINTS, dtype=torch.double)
    seen, filters, back = (points.new_zeros(shape) for shape in ((SEEN, SEEN), (SEEN, 3), (TILE, SEEN)))
    for place, point in enumerate(points):
        others = torch.cat([points[:place], points[place + 1 :]])
        seen[place, :-1] = polynomial(others)
        filters[place] = point ** torch.arange(3) / (point - others).prod()
        back[:, place] = point ** torch.arange(TILE)
    seen[-1], filters[-1, -1], back[-1, -1] = polynomial(points), 1, 1  # infinity
    return seen, filters, back


@cache
def transforms(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of an axis of T tiles, padded with a zero at each end [6T,size]; of filters [6,3]; back to one tile [4,6]."""
    with torch.inference_mode(False), torch.no_grad():  # they are kept, and may be needed outside of inference mode
        seen, filters, back = tile_matrices()
        axis = seen.new_zeros(SEEN, size // TILE, size + 2)
        for tile in range(size // TILE):
            axis[:, tile, TILE * tile : TILE * tile + SEEN] = seen
        return axis[:, :, 1:-1].reshape(-1, size).to(dtype), filters.to(dtype), back.to(dtype)


@cache
def both_axes(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The same of both axes of a single tile at once: [36,16], [36,9], [16,36]."""
    with torch.inference_mode(False), torch.no_grad():
        seen, filters, back = (torch.kron(x, x).to(dtype) for x in transforms(TILE, torch.double))
        return seen, filters, back


def tile_filters(weight: Tensor) -> Tensor:
    """weight [C',C,3,3] -> [36,C',C]."""
    taps = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (both_axes(weight.dtype)[1] @ taps).view(SEEN**2, *weight.shape[:2])


def by_tiles(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution of x [B,C,H,W], padded with zeros, by ``tile_filters`` [36,C',C] -> [B,C',H,W].

    H and W are multiples of 4. The answer is in the memory format of x where there is one tile, else in channels last.
    """
    rows, channels, height, width = x.shape
    down, across = height // TILE, width // TILE  # tiles, S and T
    if down == across == 1:
        seen, _, back = both_axes(x.dtype)
        pixels = x.permute(2, 3, 0, 1).reshape(TILE**2, -1)  # [HW,BC]
        products = torch.bmm((seen @ pixels).view(SEEN**2, rows, channels), filters.mT).view(SEEN**2, -1)  # [36,BC']
        if x.is_contiguous():
            y = (products.mT @ back.mT).view(rows, -1, height, width)
        else:
            y = (back @ products).view(height, width, rows, -1).permute(2, 3, 0, 1)
            y = y.contiguous(memory_format=torch.channels_last)
    else:  # one axis, then the other, in an order in which nothing has to be moved
        by_height, by_width = (transforms(size, x.dtype)[0] for size in (height, width))
        back = transforms(TILE, x.dtype)[2]
        columns = x.permute(3, 2, 0, 1).reshape(width, height, -1)  # [W,H,BC]
        seen = torch.matmul(by_height, columns).view(width, SEEN, -1)  # [W,6,SBC]
        seen = torch.matmul(by_width, seen.transpose(0, 1))  # [6,6T,SBC]
        products = torch.bmm(seen.view(SEEN**2, -1, channels), filters.mT).view(SEEN, -1)  # [6,6TSBC']
        tiles = torch.matmul(back, (back @ products).view(TILE, SEEN, -1))  # [4,4,TSBC']
        tiles = tiles.view(TILE, TILE, across, down, rows, -1).permute(4, 3, 0, 2, 1, 5)  # [B,S,4,T,4,C']
        y = tiles.reshape(rows, height, width, -1).permute(0, 3, 1, 2)
    return y if bias is None else y.add_(bias[:, None, None])
