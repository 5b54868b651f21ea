"""Scores of single masks and of sets of masks: outlines, pieces, shapes, likeness."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist
from torch import Tensor

from metrics.boundary import MaskBoundaryF1, boundary_f1, outline
from metrics.components import MaskComponentError, MaskComponentMiss, component_error, count_components, count_holes
from metrics.reconstruction import iou
from metrics.sets import grey_share, mean_pairwise_iou
from metrics.shape import shape_distances, shape_statistics


def noise(n: int, size: int = 12, share: float = 0.4, seed: int = 0) -> Tensor:
    return (torch.rand(n, size, size, generator=torch.Generator().manual_seed(seed)) < share).to(torch.uint8)


def square(y: int, x: int, side: int = 6, size: int = 20) -> Tensor:
    """[1,size,size] a filled square."""
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, y : y + side, x : x + side] = 1
    return mask


def disk(radius: float, size: int = 65, squeeze: float = 1.0) -> Tensor:
    """[1,size,size] a disk, or an ellipse whose height is ``squeeze`` of its width."""
    at = torch.arange(size) - (size - 1) / 2
    return ((at[:, None] / squeeze) ** 2 + at**2 <= radius**2)[None].to(torch.uint8)


def test_boundary_f1_is_1_for_equal_masks_and_for_two_empty_ones_and_0_beside_an_empty_one():
    masks, empty, full = noise(8), torch.zeros(1, 9, 9), torch.ones(1, 9, 9)
    assert boundary_f1(masks, masks, 0).tolist() == [1.0] * 8
    assert boundary_f1(empty, empty).tolist() == [1.0]
    assert boundary_f1(full, full).tolist() == [1.0]
    assert boundary_f1(full, empty).tolist() == boundary_f1(empty, full).tolist() == [0.0]


def test_an_outline_within_the_tolerance_counts_in_full_and_beyond_it_only_where_it_crosses():
    here, two_right = square(5, 5), square(5, 7)
    assert boundary_f1(here, two_right, 2.0).item() == 1.0
    # tolerance 0: of 20 outline pixels each, the upper and lower side share 4 columns
    assert boundary_f1(here, two_right, 0.0).item() == pytest.approx(8 / 20)
    # tolerance 1: 5 columns of each, and below and above them one pixel of the side that lies inside the other
    assert boundary_f1(here, two_right, 1.0).item() == pytest.approx(12 / 20)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 2.0, 3.0])
def test_boundary_f1_is_what_distances_between_all_pairs_of_outline_pixels_give(tolerance: float):
    p, q = noise(30, share=0.2), noise(30, share=0.3, seed=1)
    for mask, other, score in zip(p.numpy(), q.numpy(), boundary_f1(p, q, tolerance).tolist(), strict=True):
        a, b = (np.argwhere(m & ~ndimage.binary_erosion(m)) for m in (mask.astype(bool), other.astype(bool)))
        near = cdist(a, b) <= tolerance
        precision, recall = near.any(1).mean(), near.any(0).mean()
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert score == pytest.approx(expected, rel=1e-12)


def test_the_outline_of_a_mask_at_the_border_runs_along_the_border():
    assert outline(np.ones((1, 5, 5), bool)).sum() == 16


def test_pieces_touch_over_corners_and_holes_leak_over_edges_only():
    diagonal = torch.eye(4, dtype=torch.uint8)[None]
    ring = square(5, 5) - square(7, 7, side=2)
    open_ring = ring.clone()
    open_ring[0, 5:7, 7] = 0
    cut_corner = ring.clone()
    cut_corner[0, 5, 5] = cut_corner[0, 6, 6] = 0  # the second touches the outside and the hole over corners only
    two = square(0, 0) + square(10, 10)
    cases = {"diagonal": (diagonal, 1, 0), "ring": (ring, 1, 1), "open": (open_ring, 1, 0), "cut": (cut_corner, 1, 2)}
    cases |= {"two": (two, 2, 0), "empty": (torch.zeros(1, 5, 5), 0, 0), "full": (torch.ones(1, 5, 5), 1, 0)}
    for name, (mask, pieces, holes) in cases.items():
        assert (name, count_components(mask).item(), count_holes(mask).item()) == (name, pieces, holes)


def test_pieces_of_a_stack_are_the_pieces_of_each_mask_alone():
    masks = noise(40, share=0.35)
    alone = [ndimage.label(mask, np.ones((3, 3)))[1] for mask in masks.numpy()]
    assert count_components(masks).tolist() == alone
    holes = [ndimage.label(np.pad(1 - mask, 1, constant_values=1))[1] - 1 for mask in masks.numpy()]
    assert count_holes(masks[:, None]).tolist() == holes


def test_component_error_and_the_metrics_are_means_over_masks_however_they_are_batched():
    two, one, none = square(0, 0) + square(10, 10), square(3, 3), torch.zeros(1, 20, 20)
    pred, target = torch.cat([two, one, none, one]), torch.cat([none, one, one, one])
    assert component_error(pred, target).tolist() == [2, 0, 1, 0]
    metrics = {MaskComponentError(): 3 / 4, MaskComponentMiss(): 2 / 4}
    metrics[MaskBoundaryF1()] = boundary_f1(pred, target).mean().item()
    for metric, expected in metrics.items():
        for a, b in zip(pred.split(3), target.split(3), strict=True):
            metric.update(a, b)
        assert metric.compute().item() == pytest.approx(expected)


@pytest.mark.parametrize("score", [boundary_f1, component_error])
def test_masks_that_do_not_fit_are_refused(score: Any):
    with pytest.raises(ValueError, match="one shape"):
        score(torch.zeros(2, 4, 4), torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match=r"N,H,W"):
        score(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="tolerance is -1"):
        boundary_f1(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), -1)


def test_a_rectangle_has_the_area_perimeter_eccentricity_and_centre_of_geometry():
    mask = torch.zeros(1, 10, 20)
    mask[0, 1:4, 3:15] = 1  # 3 high, 12 wide
    found = {name: value.item() for name, value in shape_statistics(mask).items()}
    assert found == {
        "area": 36 / 200, "perimeter": 30, "components": 1, "holes": 0,
        "eccentricity": pytest.approx(math.sqrt(1 - (3 / 12) ** 2)), "centre_x": 9 / 20, "centre_y": 2.5 / 10,
    }  # fmt: skip


def test_squares_rings_blobs_and_single_pixels():
    ring, two = square(5, 5, side=8) - square(7, 7, side=4), square(0, 0) + square(10, 10)
    found = shape_statistics(torch.cat([square(14, 14), ring, two, square(3, 3, side=1)]))
    assert found["perimeter"].tolist() == [24, 32 + 16, 48, 4]  # the first touches the border
    assert found["components"].tolist() == [1, 1, 2, 1]
    assert found["holes"].tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(found["eccentricity"][[0, 1, 3]], torch.zeros(3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found["area"], torch.tensor([36, 48, 72, 1]).double() / 400)


@pytest.mark.parametrize("squeeze", [1.0, 0.8, 0.5])
def test_an_ellipse_has_the_eccentricity_of_its_axes_whichever_way_it_lies(squeeze: float):
    lying = disk(28, squeeze=squeeze)
    found = shape_statistics(torch.cat([lying, lying.mT]))["eccentricity"]
    assert found[0] == pytest.approx(found[1])
    assert found[0].item() == pytest.approx(math.sqrt(1 - squeeze**2), abs=0.03)


def test_eccentricity_is_that_of_the_eigenvalues_of_the_covariance():
    masks = noise(10, share=0.1)
    for mask, found in zip(masks.numpy(), shape_statistics(masks)["eccentricity"].tolist(), strict=True):
        small, large = np.linalg.eigvalsh(np.cov(np.argwhere(mask).T, bias=True) + np.eye(2) / 12)
        assert found == pytest.approx(math.sqrt(1 - small / large), abs=1e-6)


def test_shape_distances_are_zero_between_equal_sets_and_the_shift_between_shifted_ones():
    masks = torch.cat([square(0, 0), square(2, 3), torch.zeros(1, 20, 20, dtype=torch.uint8)])
    assert set(shape_distances(masks, masks.flip(0)).values()) == {0.0}
    found = shape_distances(masks, masks.roll(4, dims=-1))
    assert found.pop("centre_x") == pytest.approx(4 / 20)
    assert all(value == pytest.approx(0, abs=1e-6) for value in found.values())
    bigger = shape_distances(square(0, 0, side=4), square(0, 0, side=6))
    assert bigger["area"] == pytest.approx(20 / 400)
    assert bigger["perimeter"] == 8


def test_a_set_of_empty_masks_has_no_eccentricity_and_an_empty_set_no_distance():
    found = shape_distances(torch.zeros(2, 20, 20), square(0, 0))
    assert math.isnan(found["eccentricity"])
    assert found["area"] == pytest.approx(36 / 400)
    with pytest.raises(ValueError, match="0 and 1 masks"):
        shape_distances(torch.zeros(0, 4, 4), torch.ones(1, 4, 4))


def test_grey_share_counts_probabilities_strictly_between_a_tenth_and_nine_tenths():
    assert grey_share(torch.tensor([0.0, 0.05, 0.11, 0.5, 0.89, 0.95, 1.0, 1.0]).double()) == 3 / 8
    assert grey_share(torch.tensor([0.1, 0.9])) == 0.0


def test_mean_pairwise_iou_is_the_mean_over_pairs_however_it_is_chunked():
    masks = torch.cat([noise(9), torch.zeros(2, 12, 12, dtype=torch.uint8)])
    pairs = [iou(masks[i : i + 1], masks[j : j + 1]).item() for i in range(11) for j in range(i)]
    for chunk in (1, 4, 1024):
        assert mean_pairwise_iou(masks, chunk) == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)


def test_a_model_that_repeats_one_mask_has_no_diversity():
    assert mean_pairwise_iou(noise(1).expand(7, -1, -1)) == pytest.approx(1)
    assert mean_pairwise_iou(torch.cat([square(0, 0), square(10, 10)])) == pytest.approx(0)
    with pytest.raises(ValueError, match="2 or more"):
        mean_pairwise_iou(noise(1))
