import pytest
import torch
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from metrics.reconstruction import MaskDice, MaskIoU, dice, iou

A = torch.tensor([[[1, 1], [0, 0]]])
B = torch.tensor([[[1, 0], [1, 0]]])


def test_iou_and_dice_of_two_masks_that_share_one_of_three_pixels():
    assert iou(A, B).tolist() == [1 / 3]
    assert dice(A, B).tolist() == [1 / 2]


def test_empty_masks_agree_and_an_empty_one_shares_nothing_with_a_full_one():
    empty, full = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    for score in (iou, dice):
        assert score(empty, empty).tolist() == [1.0]
        assert score(empty, full).tolist() == [0.0]
        assert score(full, full).tolist() == [1.0]


def test_every_mask_scores_as_torchmetrics_scores_it():
    g = torch.Generator().manual_seed(0)
    p, q = (torch.rand(20, 8, 8, generator=g) < 0.4 for _ in range(2))
    theirs = torch.stack([binary_jaccard_index(a.int(), b.int()) for a, b in zip(p, q, strict=True)])
    torch.testing.assert_close(iou(p, q), theirs.double(), rtol=1e-6, atol=0)
    theirs = torch.stack([binary_f1_score(a.int(), b.int()) for a, b in zip(p, q, strict=True)])
    torch.testing.assert_close(dice(p, q), theirs.double(), rtol=1e-6, atol=0)


def test_bool_integer_and_probability_masks_are_the_same_masks():
    hard = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    for other in (hard.to(torch.uint8), hard.to(torch.uint8) * 255, hard * 0.4 + 0.3):
        assert iou(hard, other).tolist() == [1.0] * 5


@pytest.mark.parametrize(("metric", "score"), [(MaskIoU, iou), (MaskDice, dice)])
def test_a_metric_is_the_mean_over_masks_however_they_are_batched(metric, score):
    g = torch.Generator().manual_seed(2)
    p, q = torch.rand(10, 1, 8, 8, generator=g), torch.rand(10, 1, 8, 8, generator=g)
    seen = metric()
    for a, b in zip(p.split(3), q.split(3), strict=True):
        seen.update(a, b)
    torch.testing.assert_close(seen.compute(), score(p, q).mean())


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        iou(torch.zeros(2, 4, 4), torch.zeros(2, 1, 4, 4))
