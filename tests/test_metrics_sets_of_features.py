"""Kernel distance, precision, recall, density, coverage and retrieval, beside brute force and torchmetrics."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from metrics import coverage as module
from metrics.coverage import density_coverage, precision_recall, radii
from metrics.frechet import frechet_distance
from metrics.kernel import kernel_distance, polynomial_mmd
from metrics.retrieval import retrieval_accuracy


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kernel_distance_is_what_torchmetrics_computes():
    a, b = normal(60, 16, 0), 1.2 * normal(60, 16, 1) + 0.3
    assert polynomial_mmd(a, b) == pytest.approx(poly_mmd(a, b).item(), rel=1e-12)


def test_kernel_distance_of_sets_of_two_sizes_worked_out_by_hand():
    # D = 1: k(x,y) = (xy + 1)^3. a = {0,1}: k(0,1) = 1; b = {1,2,-1}: k(1,2) = 27, k(1,-1) = 0, k(2,-1) = -1;
    # across: k(0,.) = 1, 1, 1 and k(1,.) = 8, 27, 0.
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0], [-1.0]])
    assert polynomial_mmd(a, b) == pytest.approx(1 + 26 / 3 - 2 * 38 / 6, rel=1e-12)


def test_a_set_beside_itself_is_just_below_zero_by_the_diagonal_that_is_left_out():
    x = normal(40, 8, 0)
    kernel = (x @ x.T / 8 + 1) ** 3
    expected = 2 * ((kernel.sum() - kernel.trace()) / (40 * 39) - kernel.mean())
    assert polynomial_mmd(x, x) == pytest.approx(expected.item(), rel=1e-9)
    assert polynomial_mmd(x, x) < 0


def test_kernel_distance_does_not_depend_on_the_order_of_rows_or_of_the_sets():
    a, b = normal(30, 8, 0), normal(20, 8, 1) + 1
    assert polynomial_mmd(a[torch.randperm(30)], b) == pytest.approx(polynomial_mmd(a, b), rel=1e-12)
    assert polynomial_mmd(b, a) == pytest.approx(polynomial_mmd(a, b), rel=1e-12)


def test_kernel_distance_is_unbiased_at_every_size():
    a, b = normal(3000, 8, 0), normal(3000, 8, 1)
    whole = polynomial_mmd(a, b)
    for size in (10, 100):
        found = kernel_distance(a, b, subsets=400, size=size)
        assert abs(found["mean"] - whole) < 4 * found["std"] / math.sqrt(400)
    assert kernel_distance(a, b + 1, size=100)["mean"] > 10 * found["std"]


def test_one_subset_of_everything_is_the_whole_and_one_seed_gives_one_number():
    a, b = normal(30, 8, 0), normal(30, 8, 1) + 1
    assert kernel_distance(a, b, subsets=1, size=30) == {"mean": pytest.approx(polynomial_mmd(a, b)), "std": 0}
    before = torch.get_rng_state()
    assert kernel_distance(a, b, seed=3) == kernel_distance(a, b, seed=3) != kernel_distance(a, b, seed=4)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("score", [polynomial_mmd, kernel_distance, precision_recall, density_coverage])
def test_features_that_cannot_be_compared_are_refused(score: Any):
    good = torch.ones(9, 4)
    for bad in (torch.ones(1, 4), torch.ones(9), torch.ones(9, 5), torch.full((9, 4), math.nan)):
        with pytest.raises(ValueError, match="feature"):
            score(bad, good)


def test_impossible_subsets_and_neighbours_are_refused():
    with pytest.raises(ValueError, match="2 to 9 rows"):
        kernel_distance(torch.ones(9, 4), torch.ones(12, 4), size=10)
    for k in (0, 9):
        with pytest.raises(ValueError, match=f"k is {k}"):
            density_coverage(torch.ones(9, 4), torch.ones(12, 4), k)


class Columns(nn.Module):
    """Pictures [B,3,1,D] of bytes -> the numbers in their first channel, as features."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.num_features = d

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0].double()


def test_frechet_and_kernel_distance_are_those_of_torchmetrics_with_the_same_features():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 200, (80, 3, 1, 6), generator=g), torch.randint(40, 256, (80, 3, 1, 6), generator=g)
    frechet = FrechetInceptionDistance(Columns(6)).set_dtype(torch.float64)
    kernel = KernelInceptionDistance(Columns(6), subsets=1, subset_size=80)
    for metric in (frechet, kernel):
        metric.update(a.to(torch.uint8), real=True)
        metric.update(b.to(torch.uint8), real=False)
    of_a, of_b = a[:, 0, 0], b[:, 0, 0]
    assert frechet_distance(of_a, of_b) == pytest.approx(frechet.compute().item(), rel=1e-6)
    assert polynomial_mmd(of_a, of_b) == pytest.approx(kernel.compute()[0].item(), rel=1e-6)


def test_balls_on_a_line_worked_out_by_hand():
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [6.0]])
    # k = 1: real radii 1, 1, 2, so 0.5 lies in two balls of three and 6 in none; fake radii 5.5, both, so the ball
    # around 0.5 reaches from -5 to 6 and holds all real ones.
    assert radii(real.double(), 1).sqrt().tolist() == [1, 1, 2]
    assert precision_recall(real, fake, k=1) == {"precision": 1 / 2, "recall": 1.0}
    assert density_coverage(real, fake, k=1) == {"density": 2 / (1 * 2), "coverage": pytest.approx(2 / 3)}
    # 5 lies on the border of the ball around 3, which includes it; 5.001 does not
    assert density_coverage(real, torch.tensor([[5.0], [9.0]]), k=1)["density"] == 1 / 2
    assert density_coverage(real, torch.tensor([[5.001], [9.0]]), k=1)["density"] == 0.0


@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_four_are_those_of_loops_over_all_pairs_however_they_are_chunked(monkeypatch, k: int):
    monkeypatch.setattr(module, "CHUNK", 7)
    real, fake = normal(40, 5, 0) + 3, 0.7 * normal(30, 5, 1) + 3.4
    real[3] = real[4] = real[5] = fake[0]  # copies, whose balls may have no extent

    def radius(x: Tensor, i: int) -> float:
        return sorted((x[i] - x[j]).norm().item() for j in range(len(x)) if j != i)[k - 1]

    r, f = [radius(real, i) for i in range(40)], [radius(fake, i) for i in range(30)]
    gap = [[(x - y).norm().item() for y in fake] for x in real]
    hits = [[gap[i][j] <= r[i] for j in range(30)] for i in range(40)]
    assert precision_recall(real, fake, k) == pytest.approx({
        "precision": sum(any(hits[i][j] for i in range(40)) for j in range(30)) / 30,
        "recall": sum(any(gap[i][j] <= f[j] for j in range(30)) for i in range(40)) / 40,
    })  # fmt: skip
    assert density_coverage(real, fake, k) == pytest.approx({
        "density": sum(map(sum, hits)) / (k * 30), "coverage": sum(map(any, hits)) / 40,
    })  # fmt: skip


def test_a_ball_without_extent_holds_exact_copies_and_nothing_else():
    """Four copies of a mask leave its balls (k = 3) a radius of 0, which rounding must neither widen nor hide."""
    real, others = normal(20, 48, 0).repeat_interleave(4, 0) + 2, normal(20, 48, 0) + 2 + 1e-4 * normal(20, 48, 1)
    assert radii(real, 3).tolist() == [0.0] * 80
    assert precision_recall(real, real[::4], k=3)["precision"] == 1.0
    assert density_coverage(real, real[::4], k=3) == {"density": pytest.approx(4 / 3), "coverage": 1.0}
    assert precision_recall(real, others, k=3)["precision"] == 0.0


def test_two_samples_of_one_distribution_have_density_1_and_the_expected_coverage():
    # Of a real feature's k nearest among all others, each is a real one with probability 1/2, and coverage misses where
    # all k are (Naeem et al. 2020): 1 - 2^-k, but for O(1/N).
    found = density_coverage(normal(1500, 16, 0), normal(1500, 16, 1), k=5)
    assert found["density"] == pytest.approx(1, abs=0.05)
    assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.015)


def test_a_set_covers_itself_and_a_far_set_covers_nothing():
    x = normal(50, 4, 0)
    assert precision_recall(x, x) == {"precision": 1.0, "recall": 1.0}
    assert density_coverage(x, x)["coverage"] == 1.0
    assert precision_recall(x, x + 100) == {"precision": 0.0, "recall": 0.0}
    assert density_coverage(x, x + 100) == {"density": 0.0, "coverage": 0.0}


def test_one_mode_of_two_is_precise_but_recalls_half():
    real = torch.cat([normal(200, 4, 0), normal(200, 4, 1) + 50])
    found = precision_recall(real, normal(200, 4, 2)) | density_coverage(real, normal(200, 4, 2))
    assert found["precision"] > 0.85
    assert 0.4 < found["recall"] <= 0.5
    assert 0.4 < found["coverage"] <= 0.5


def test_retrieval_is_right_for_the_right_masks_and_guesses_for_features_that_say_nothing():
    real, captions = normal(400, 16, 0), [str(i) for i in range(400)]
    assert retrieval_accuracy(3 * real, real, captions) == 1.0
    assert retrieval_accuracy(-real, real, captions) == 0.0
    assert retrieval_accuracy(torch.ones(400, 16), torch.ones(400, 16), captions) == pytest.approx(1 / 100)
    assert retrieval_accuracy(torch.zeros(400, 16), real, captions, candidates=20) == pytest.approx(1 / 20)
    chance = retrieval_accuracy(normal(400, 16, 1), real, captions, candidates=4)
    assert chance == pytest.approx(1 / 4, abs=4 * math.sqrt(3 / 16 / 400))


def test_retrieval_with_all_others_as_candidates_is_the_nearest_of_all():
    real, generated = normal(30, 6, 0), normal(30, 6, 0) + normal(30, 6, 1)
    nearest = nn.functional.cosine_similarity(generated[:, None], real[None], dim=2).argmax(1)
    expected = (nearest == torch.arange(30)).double().mean().item()
    assert 0 < expected < 1
    assert retrieval_accuracy(generated, real, [str(i) for i in range(30)], candidates=30) == pytest.approx(expected)


def test_masks_of_the_same_caption_are_no_wrong_answers_and_one_seed_gives_one_number():
    real, captions = normal(60, 6, 0), ["cat", "dog", "cow"] * 20
    for kind in range(3):
        real[kind::3] = real[kind]  # all masks of a caption are the same one
    assert retrieval_accuracy(real, real, captions, candidates=41) == 1.0
    with pytest.raises(ValueError, match="only 40 masks of other captions"):
        retrieval_accuracy(real, real, captions, candidates=42)
    noisy, names = real + 2 * normal(60, 6, 1), [str(i) for i in range(60)]
    scores = {seed: retrieval_accuracy(noisy, real, names, candidates=5, seed=seed) for seed in (0, 1, 2, 3)}
    assert scores[0] == retrieval_accuracy(noisy, real, names, candidates=5, seed=0)
    assert len(set(scores.values())) > 1


def test_what_cannot_be_retrieved_is_refused():
    x = torch.ones(9, 4)
    with pytest.raises(ValueError, match="N captions"):
        retrieval_accuracy(x, x, ["a"] * 8)
    with pytest.raises(ValueError, match="candidates is 1"):
        retrieval_accuracy(x, x, ["a"] * 9, candidates=1)
