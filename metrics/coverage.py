"""Fidelity and diversity apart: precision and recall, density and coverage, from balls around features.

A set's balls reach from each of its features to its k-th nearest neighbour in the same set (itself not counted), the
border included.

* precision: share of generated features in some ball of a real one; recall: share of real features in some ball of a
  generated one (Kynkaanniemi et al. 2019, k = 3).
* density: number of real balls that a generated feature lies in, over k, so it may exceed 1; coverage: share of real
  balls with a generated feature inside (Naeem et al. 2020, k = 5). One outlier among the real features,
  with its huge ball, spoils precision but not these two.

Distances are in float64, in chunks of rows: 8,000 against 8,000 features take about 100 MB.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from metrics.kernel import feature_pair

CHUNK = 256
SAME = 1e-13
"""Squared distances below this share of the squared norms are rounding of the matrix product: they count as 0."""
BORDER = 1 + 1e-9
"""Squared distances that agree to nine digits are equal, so that a feature on the border lies in the ball."""


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> dict[str, float]:
    """``precision`` and ``recall`` of features [M,D] that were generated, beside real ones [N,D].

    Raises:
        ValueError: a set has no k-th neighbour, the numbers of features differ, or a feature is not finite.
    """
    real, fake = _checked(real, fake, k)
    real_radius, fake_radius = radii(real, k), radii(fake, k)
    in_real = torch.zeros(len(fake), dtype=torch.bool)
    in_fake = []
    for squared, radius in zip(_squared_distances(real, fake), real_radius.split(CHUNK), strict=True):
        in_real |= (squared <= radius[:, None] * BORDER).any(0)                 # [chunk,M] -> [M]
        in_fake.append((squared <= fake_radius * BORDER).any(1))                # [chunk,M] -> [chunk]
    return {"precision": float(in_real.double().mean()), "recall": float(torch.cat(in_fake).double().mean())}


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """``density`` and ``coverage`` of features [M,D] that were generated, beside real ones [N,D].

    Raises:
        ValueError: a set has no k-th neighbour, the numbers of features differ, or a feature is not finite.
    """
    real, fake = _checked(real, fake, k)
    inside, covered = 0, 0
    for squared, radius in zip(_squared_distances(real, fake), radii(real, k).split(CHUNK), strict=True):
        hits = squared <= radius[:, None] * BORDER                              # [chunk,M]
        inside += int(hits.sum())
        covered += int(hits.any(1).sum())
    return {"density": inside / (k * len(fake)), "coverage": covered / len(real)}


def radii(features: Tensor, k: int) -> Tensor:
    """[N] squared distance of each of the features [N,D] float64 to its k-th nearest neighbour among the others."""
    parts = []
    for i, squared in enumerate(_squared_distances(features, features)):
        rows = torch.arange(len(squared))
        squared[rows, rows + i * CHUNK] = torch.inf
        parts.append(squared.topk(k, largest=False).values[:, -1])
    return torch.cat(parts)


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """[chunk,M] squared distances of rows of a [N,D] to all of b [M,D], chunk by chunk."""
    norms = b.square().sum(1)                                                   # [M]
    for part in a.split(CHUNK):
        scale = part.square().sum(1, keepdim=True) + norms                      # [chunk,M]
        squared = torch.addmm(scale, part, b.T, alpha=-2)
        yield squared.masked_fill_(squared < SAME * scale, 0)


def _checked(real: Tensor, fake: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both sets in float64 around the mean of the real ones, where the matrix product rounds least."""
    real, fake = feature_pair(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k is {k}, but sets of {len(real)} and {len(fake)} features have 1 to N - 1 neighbours")
    mean = real.mean(0)
    return real - mean, fake - mean
