"""Kernel distance: the squared maximum mean discrepancy with a cubic polynomial kernel, in float64.

Binkowski, Sutherland, Arbel & Gretton 2018 (with Inception features: "KID"), with k(x,y) = (x.y / D + 1)^3. Unlike the
Frechet distance its estimate is unbiased at any number of samples, so it may come out a little below zero, and two sets
of different sizes can be compared.
"""

import torch
from torch import Tensor


def polynomial_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD (Gretton et al. 2012, eq. 3) of features [N,D] and [M,D].

    Raises:
        ValueError: a set has fewer than 2 rows, the numbers of features differ, or a feature is not finite.
    """
    a, b = feature_pair(a, b)
    within_a = _off_diagonal_mean(_kernel(a, a))
    within_b = _off_diagonal_mean(_kernel(b, b))
    return float(within_a + within_b - 2 * _kernel(a, b).mean())


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, size: int | None = None, seed: int = 0
) -> dict[str, float]:
    """``polynomial_mmd`` of random subsets of features [N,D] and [M,D]: its ``mean`` and ``std`` over the subsets.

    Args:
        subsets: how many pairs of subsets; their std is that of one such number, not of the mean.
        size: rows of each subset, drawn without replacement; by default half of the smaller set, at most 1000.
        seed: of the draw. The caller's random state is left alone.

    Raises:
        ValueError: as ``polynomial_mmd``; or a size that the smaller set does not have.
    """
    a, b = feature_pair(a, b)
    most = min(len(a), len(b))
    size = max(2, min(1000, most // 2)) if size is None else size
    if not 2 <= size <= most or subsets < 1:
        raise ValueError(f"{subsets} subsets of {size} rows are impossible: give 1 or more, of 2 to {most} rows")
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([
        polynomial_mmd(*(x[torch.randperm(len(x), generator=generator)[:size]] for x in (a, b)))
        for _ in range(subsets)
    ], dtype=torch.float64)  # fmt: skip
    return {"mean": float(values.mean()), "std": float(values.std(correction=0))}


def feature_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of features [N,D] and [M,D] in float64 on the CPU.

    Raises:
        ValueError: a set has fewer than 2 rows, the numbers of features differ, or a feature is not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            "features to compare need the shapes [N,D] and [M,D] with N and M of 2 or more, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("a feature is not finite, so there is nothing to compare")
    return a, b


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3                                      # [N,M]


def _off_diagonal_mean(k: Tensor) -> Tensor:
    return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))
