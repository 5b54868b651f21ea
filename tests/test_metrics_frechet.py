import math

import pytest
import torch
from scipy.linalg import sqrtm

from metrics.frechet import frechet_distance, frechet_from_moments


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(n: int, mean: torch.Tensor, root: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Features [N,D] whose sample mean is ``mean`` and whose unbiased covariance is ``root' root``."""
    q = torch.linalg.qr(normal(n, len(mean), seed) - normal(n, len(mean), seed).mean(0)).Q
    return q * (n - 1) ** 0.5 @ root + mean


def test_two_gaussians_with_diagonal_covariances():
    mean_a, mean_b = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([0.0, 2.0, 2.0]).double()
    std_a, std_b = torch.tensor([1.0, 3.0, 0.5]).double(), torch.tensor([2.0, 1.0, 0.5]).double()
    expected = float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum())  # 5 + 5
    assert frechet_from_moments(mean_a, std_a.square().diag(), mean_b, std_b.square().diag()) == pytest.approx(expected)
    a, b = exactly(50, mean_a, std_a.diag()), exactly(80, mean_b, std_b.diag(), seed=1)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_two_gaussians_whose_covariances_do_not_commute():
    # For 2x2 matrices, tr(M^(1/2)) = sqrt(tr M + 2 sqrt(det M)).
    cov_a = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    cov_b = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    product = cov_a @ cov_b
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    expected = float(cov_a.trace() + cov_b.trace()) - 2 * root
    zero = torch.zeros(2)
    assert frechet_from_moments(zero, cov_a, zero, cov_b) == pytest.approx(expected, rel=1e-12)


def test_it_is_what_the_matrix_root_gives():
    a, b = normal(200, 12, 3), normal(300, 12, 4) @ normal(12, 12, 5) / 3 + 0.2
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = sqrtm((cov_a @ cov_b).numpy()).real.trace()
    expected = float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [5, 40, 400])
def test_a_set_is_at_distance_zero_from_itself_even_with_fewer_rows_than_features(n):
    x = 10 * normal(n, 64, 0) + 3
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


def test_order_of_rows_and_of_the_two_sets_does_not_matter():
    a, b = normal(30, 64, 0), normal(25, 64, 1) + 1
    d = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(d, rel=1e-10)
    assert frechet_distance(a[torch.randperm(30)], b) == pytest.approx(d, rel=1e-10)


def test_shifting_a_set_adds_the_squared_shift():
    x = normal(40, 8, 0)
    assert frechet_distance(x, x + 2) == pytest.approx(8 * 4, rel=1e-10)


@pytest.mark.parametrize("bad", [torch.zeros(1, 4), torch.zeros(4), torch.full((3, 4), math.nan), torch.zeros(3, 5)])
def test_sets_that_have_no_distance_are_refused(bad):
    with pytest.raises(ValueError, match=r"features|finite"):
        frechet_distance(bad, torch.zeros(3, 4))
