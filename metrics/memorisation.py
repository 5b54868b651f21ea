"""Memorisation: is a generated mask a copy of a training mask?

For each mask the best IoU with any training mask, over a mirror image and shifts by a few pixels of the training mask
(what is shifted over the border is lost, as it is in augmentation). Alone the number says little, because simple shapes
resemble each other: it belongs beside the same number of held-out masks, which nothing can have copied.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from metrics.planes import bits
from metrics.reconstruction import as_mask

ROWS, COLUMNS = 1024, 2304
"""Masks and moved training masks of one matrix product; its result (9 MB) should stay in the cache."""


def best_match(masks: Tensor, training: Tensor, *, shift: int = 1, flip: bool = True) -> tuple[Tensor, Tensor]:
    """([N] float64 best IoU, [N] long row of the training mask that has it) of masks [N,H,W] and [M,H,W].

    Two empty masks have IoU 1. The search is exact. Intersections are matrix products of 0 and 1; a training block is
    skipped for a mask only where the areas alone, IoU <= min / max, leave nothing to gain. Where two training masks
    match equally well (or, above 2048 pixels, to one part in 10^7), either may be named.

    Args:
        shift: pixels in each direction, so (2 shift + 1)^2 places; 0 for none.
        flip: also try the mirror image (left to right).

    Raises:
        ValueError: masks of two sizes, a set without masks, or a negative shift.
    """
    if masks.ndim != 3 or training.ndim != 3 or masks.shape[1:] != training.shape[1:] or not len(masks) * len(training):
        raise ValueError(
            f"masks need the shapes [N,H,W] and [M,H,W], 1 or more each, got {tuple(masks.shape)} and "
            f"{tuple(training.shape)}"
        )
    if shift < 0:
        raise ValueError(f"shift is {shift}, but it must be zero or a positive number of pixels")
    masks, training = as_mask(masks), as_mask(training)
    order, train_order = (torch.argsort(x.flatten(1).count_nonzero(1)) for x in (masks, training))
    copies = (2 * shift + 1) ** 2 * (1 + flip)
    blocks = train_order.split(max(1, COLUMNS // copies))
    spans = torch.stack([_span(moved(training[rows], shift, flip)) for rows in blocks])             # [blocks,2]
    best, index = torch.empty(len(masks), dtype=torch.float64), torch.empty(len(masks), dtype=torch.long)
    for rows in order.split(ROWS):
        best[rows], index[rows] = _search(masks[rows], training, blocks, spans, shift, flip)
    return best, index


def moved(masks: Tensor, shift: int, flip: bool) -> Tensor:
    """[copies*N,H,W] all places (and mirror images) of masks [N,H,W]; copy c of mask i is row c*N + i."""
    _, height, width = masks.shape
    sides = [masks, masks.flip(-1)] if flip else [masks]
    places = range(2 * shift + 1)
    framed = [F.pad(side, (shift, shift, shift, shift)) for side in sides]
    return torch.cat([x[:, i : i + height, j : j + width] for x in framed for i in places for j in places])


def _span(masks: Tensor) -> Tensor:
    """[2] smallest and largest area of masks, where an empty mask has the one pixel that ``bits`` gives it."""
    areas = masks.flatten(1).count_nonzero(1).clamp(min=1)
    return torch.stack([areas.min(), areas.max()]).float()


def _search(
    masks: Tensor, training: Tensor, blocks: tuple[Tensor, ...], spans: Tensor, shift: int, flip: bool
) -> tuple[Tensor, Tensor]:
    """Best IoU and its training row for masks [R,H,W], block by block, the most promising areas first.

    s = I / (|A| + |B|) grows with IoU = I / (|A| + |B| - I), and needs no union; for given areas it is at most
    min / (|A| + |B|). Both are one correctly rounded division, so the bound holds in float32 too.
    """
    a = bits(masks)                                                             # [R,P+1]
    area = a.sum(1, keepdim=True)                                               # [R,1]
    nearest = area.clamp(spans[:, 0], spans[:, 1])                              # [R,blocks] best area of each block
    bound = torch.minimum(area, nearest) / (area + nearest)
    best = torch.full((len(a),), -1.0)
    total, index = torch.zeros(len(a)), torch.zeros(len(a), dtype=torch.long)
    for at in bound.amax(0).argsort(descending=True).tolist():
        open_rows = (bound[:, at] > best).nonzero()[:, 0]
        if not len(open_rows):
            continue
        block = blocks[at]
        b = bits(moved(training[block], shift, flip))                           # [C,P+1]
        areas = b.sum(1)
        score = a[open_rows] @ b.T                                              # [r,C] intersections
        score /= area[open_rows] + areas
        better = score.amax(1) > best[open_rows]
        rows = open_rows[better]
        best[rows], column = score[better].max(1)
        total[rows] = area[rows, 0] + areas[column]
        index[rows] = block[column % len(block)]
    inside = (best.double() * total.double()).round()                           # back to the exact integer
    return inside / (total.double() - inside), index


def memorisation(generated: Tensor, held_out: Tensor) -> dict[str, float]:
    """What ``best_match`` found for generated masks [N], beside the same for held-out masks [M].

    Returns:
        ``median`` of the best IoU, and ``share_above``: the share of generated masks above the held-out's 99th
        percentile, which would be 0.01 if they were held-out ones.
    """
    if min(len(generated), len(held_out)) == 0:
        raise ValueError(f"{len(generated)} generated and {len(held_out)} held-out values: one of each is needed")
    generated, held_out = generated.double(), held_out.double()
    p99 = held_out.quantile(0.99)
    return {
        "median": float(generated.quantile(0.5)),
        "share_above": float((generated > p99).double().mean()),
    }
