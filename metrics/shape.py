"""What shapes a set of masks has, in numbers that need no network, and how far two sets are apart in each.

* ``area``: share of pixels that are foreground.
* ``perimeter``: number of pixel edges between foreground and background (outside counts as background), in pixels.
* ``components`` and ``holes``: see metrics.components.
* ``eccentricity``: of the ellipse with the mask's second moments, 0 for a disk, towards 1 for a line. A pixel counts as
  a unit square, so its own variance of 1/12 is part of the moments and an a x b rectangle has sqrt(1 - (b/a)^2).
* ``centre_x`` and ``centre_y``: mean position of the foreground over width and height; the middle is 0.5.

An empty mask has no eccentricity and no centre: these are nan and left out of distances.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metrics.components import count_components, count_holes
from metrics.planes import as_planes

_CHUNK = 2**24  # pixels looked at at once


def shape_statistics(masks: Tensor) -> dict[str, Tensor]:
    """The statistics above, [N] float64 each, of masks [N,H,W] or [N,1,H,W].

    Raises:
        ValueError: masks of another shape.
    """
    some = max(1, _CHUNK // max(1, masks.shape[-2:].numel()))
    parts = [_statistics(part) for part in masks.split(some)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _statistics(masks: Tensor) -> dict[str, Tensor]:
    planes = as_planes(masks)
    moments = _moments(planes)
    return {
        "area": torch.from_numpy(planes.mean((1, 2))),
        "perimeter": torch.from_numpy(_perimeter(planes)).double(),
        "components": count_components(masks).double(),
        "holes": count_holes(masks).double(),
    } | {name: torch.from_numpy(values) for name, values in moments.items()}


def shape_distances(a: Tensor, b: Tensor) -> dict[str, float]:
    """1-D Wasserstein distance, per statistic and in its unit, between masks [N,H,W] and [M,H,W].

    nan where no mask of a set has the statistic.

    Raises:
        ValueError: masks of another shape, or a set without masks.
    """
    if min(len(a), len(b)) == 0:
        raise ValueError(f"sets of {len(a)} and {len(b)} masks have no distance: give at least one mask each")
    of_a, of_b = shape_statistics(a), shape_statistics(b)
    return {name: _distance(of_a[name], of_b[name]) for name in of_a}


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a[~a.isnan()], b[~b.isnan()]
    from scipy.stats import wasserstein_distance  # a second, which a training that judges nothing need not wait

    return float(wasserstein_distance(a.numpy(), b.numpy())) if min(len(a), len(b)) else float("nan")


def _perimeter(planes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N] pixel edges between the two kinds of pixel."""
    framed = np.pad(planes, ((0, 0), (1, 1), (1, 1)))
    lying = (framed[:, 1:] != framed[:, :-1]).sum((1, 2))
    return lying + (framed[:, :, 1:] != framed[:, :, :-1]).sum((1, 2))


def _moments(planes: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Eccentricity and centre, [N] each, from sums over rows and columns."""
    _, height, width = planes.shape
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    by_row, by_column = planes.sum(2), planes.sum(1)                            # [N,H] [N,W]
    area = by_row.sum(1)
    with np.errstate(invalid="ignore"):                                         # 0 / 0 is nan: an empty mask
        my, mx = by_row @ y / area, by_column @ x / area                        # [N]
        vy = by_row @ y**2 / area - my**2 + 1 / 12
        vx = by_column @ x**2 / area - mx**2 + 1 / 12
        vxy = (planes @ x) @ y / area - mx * my
        spread = np.sqrt((vx - vy) ** 2 + 4 * vxy**2)
        eccentricity = np.sqrt(np.clip(2 * spread / (vx + vy + spread), 0, 1))  # sqrt(1 - small / large eigenvalue)
    return {"eccentricity": eccentricity, "centre_x": mx / width, "centre_y": my / height}
