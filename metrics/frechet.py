"""Frechet distance between two sets of features, in float64.

Between Gaussians of mean m and covariance S (Dowson & Landau 1982; with Inception features: Heusel et al. 2017):

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

The last term needs no matrix root. With R1' R1 = S1 and R2' R2 = S2, the eigenvalues of S1 S2 are the squared singular
values of R1 R2', so the trace of the root is their sum. R is taken from the centred features themselves, so that
nothing is squared on the way, no covariance has to be invertible, and fewer samples than features will do.
As for every distance of this kind, its bias grows as 1/N: compare only numbers that were made with the same N.
"""

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance (the form that "FID" reports) of the Gaussians fitted to features [N,D] and [M,D].

    Covariances are the unbiased ones (divided by N - 1).

    Raises:
        ValueError: if a set has fewer than 2 rows, the numbers of features differ, or a feature is not finite.
    """
    mean_a, root_a = _fit(a)
    mean_b, root_b = _fit(b)
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"features to compare need the same width, got {len(mean_a)} and {len(mean_b)}")
    return _distance(mean_a, root_a, mean_b, root_b)


def frechet_from_moments(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Frechet distance of two Gaussians with means [D] and covariances [D,D]."""
    return _distance(mean_a.double(), _root(cov_a.double()), mean_b.double(), _root(cov_b.double()))


def _distance(mean_a: Tensor, root_a: Tensor, mean_b: Tensor, root_b: Tensor) -> float:
    """The formula above from means [D] and roots [r,D]; never below zero, which rounding could else cause."""
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()                       # tr (S1 S2)^(1/2)
    squared = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(float(squared), 0.0)


def _fit(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and root [min(N,D),D] of the unbiased covariance of features [N,D]."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a set of features needs the shape [N,D] with N of 2 or more, got {tuple(features.shape)}")
    x = features.detach().double().cpu()
    if not torch.isfinite(x).all():
        raise ValueError("a feature is not finite, so there is no distance")
    mean = x.mean(0)
    centred = (x - mean) / (len(x) - 1) ** 0.5
    # QR: centred = Q root with orthonormal Q, so root' root is the covariance, whatever the number of rows.
    return mean, torch.linalg.qr(centred, mode="r").R


def _root(cov: Tensor) -> Tensor:
    """[D,D] with root' root = cov, for a symmetric positive semi-definite cov; tiny negative eigenvalues count as 0."""
    values, vectors = torch.linalg.eigh(cov)
    return values.clamp(min=0).sqrt()[:, None] * vectors.T
