"""Numbers of large masks: in parts that fit memory, and at a smaller size where no more is to be seen."""

import numpy as np
import pytest
import torch

from data.versions import moved, pieces
from metrics import geometry, shape
from metrics.classifier import MaskClassifier, look
from metrics.features import FeatureNet
from metrics.geometry import describe
from metrics.judge import Judge
from metrics.shape import shape_statistics
from metrics.yardstick import Yardstick, searched
from tests.own_masks import drawing


@pytest.fixture
def drawings() -> torch.Tensor:
    """[9,96,96]: an empty one, and eight of one to five pieces."""
    draw = np.random.default_rng(0)
    found = [np.zeros((96, 96), np.uint8)]
    for _ in range(8):
        one = drawing(draw)[:96, :96]
        found.append(np.pad(one, ((0, 96 - one.shape[0]), (0, 96 - one.shape[1]))))
    return torch.from_numpy(np.stack(found))


def test_parts_of_any_size_give_the_same_numbers(drawings: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, words = shape_statistics(drawings), describe(drawings)
    monkeypatch.setattr(shape, "_CHUNK", 2 * 96 * 96)
    monkeypatch.setattr(geometry, "_CHUNK", 1)
    assert describe(drawings) == words
    for name, values in shape_statistics(drawings).items():
        assert torch.equal(values.nan_to_num(-1), whole[name].nan_to_num(-1)), name
    assert all(len(values) == 0 for values in shape_statistics(drawings[:0]).values())
    assert describe(drawings[:0]) == []


def test_copies_are_looked_for_at_64_pixels(drawings: torch.Tensor) -> None:
    large = drawings.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :256, :256]
    small = searched(large)
    assert small.shape == (9, 64, 64)
    assert small.dtype == torch.uint8
    assert torch.equal(small, drawings[:, :64, :64])
    assert searched(small) is small
    assert len(searched(large[:0])) == 0
    judge = Judge("pixels", lambda x: (x.flatten(1).float(), None), None)
    yardstick = Yardstick(large[1:3], large[3:], judge, FeatureNet("pixels", lambda x: x.flatten(1).float()))
    assert yardstick.memorised(large[5:7])["memorised"] == 1


def test_a_classifier_sees_large_masks_as_grey_ones_of_64_pixels() -> None:
    torch.manual_seed(0)
    net = MaskClassifier(["a", "b"]).eval()
    masks = (torch.rand(3, 64, 64) > 0.5).to(torch.uint8)
    large = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    for one, two in zip(look(net, masks), look(net, large), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_specks_do_not_keep_a_version_from_being_resized() -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[60:160, 80:170] = 1
    mask[50, 60:200:2] = 1  # specks, which do not all survive
    assert pieces(mask[None], mask.size) == 1
    draw = np.random.default_rng(0)
    sizes = {int(moved(mask, draw)[:, :].sum()) for _ in range(6)}
    assert max(sizes) - min(sizes) > 1000
