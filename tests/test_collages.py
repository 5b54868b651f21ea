"""Pictures of pieces of icons: set apart, captioned by what they show, made of icons of their own side of the split."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from configs.data_cfg import DataCfg, EmbeddedSource
from data import collages, embedded
from data.masks import MaskSet
from data.sources import data_fingerprint, load_splits
from metrics.components import label
from metrics.geometry import are_captions, describe
from metrics.grammar import COUNTS, SHAPES, parse
from metrics.planes import SQUARE


@pytest.fixture(scope="module")
def icons() -> np.ndarray:
    return embedded.stored("icons64").images[::40]  # 702 of them


@pytest.fixture
def few(icons: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"icons64/{i}" for i in range(len(icons))]
    monkeypatch.setattr(embedded, "stored", lambda name: MaskSet(icons, ["an icon"] * len(icons), names))
    monkeypatch.setattr(embedded, "COLLAGES", (300, 40))


def test_the_same_pictures_each_time_with_captions_of_what_they_show(icons: np.ndarray) -> None:
    made = collages.collages(icons, 400, 0)
    assert (made.images == collages.collages(icons, 400, 0).images).all()
    assert (made.images != collages.collages(icons, 400, 1).images).any()
    assert made.prompts == [geometry.caption for geometry in describe(torch.from_numpy(made.images))]
    assert set(np.unique(made.images)) == {0, 1}
    found = [geometry for prompt in made.prompts if (geometry := parse(prompt))]
    assert len(found) == 400
    counts, shapes = Counter(own.count for own in found), Counter(own.shape for own in found)
    assert min(counts[word] for word in COUNTS) > 400 / len(COUNTS) / 2
    assert min(shapes[word] for word in SHAPES) > 400 / len(SHAPES) / 2
    assert len({own.place for own in found}) == 9
    assert len({own.size for own in found}) == 3


def test_pieces_are_apart_and_of_one_shape(icons: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collages, "WHOLE", 0.0)
    numbers = []
    for image in collages.collages(icons, 200, 3).images:
        labels, number = label(image[None], SQUARE)
        numbers.append(number)
        for piece in range(1, number + 1):
            near = ndimage.binary_dilation(labels[0] == piece, SQUARE, 2)
            assert set(np.unique(labels[0][near])) <= {0, piece}
    assert set(numbers) == set(range(1, collages.MOST + 1))
    assert max(Counter(numbers).values()) < 3 * min(Counter(numbers).values())


def test_each_piece_of_an_icon_is_whole_and_sorted_by_its_shape() -> None:
    icon = np.zeros((2, 64, 64), np.uint8)
    icon[0, 4:24, 4:24] = 1
    icon[0, 10:18, 10:18] = 0  # hollow
    icon[0, 40:44, 8:60] = 1  # long
    icon[0, 60, 60] = 1  # a speck
    y, x = np.indices((64, 64)) - 31.5
    icon[1] = y**2 + x**2 < 400
    hollow, long, disk = collages.pieces_by_shape(icon)  # in the order of SHAPES, none is uneven
    np.testing.assert_array_equal(hollow, [icon[0, 4:24, 4:24]])
    np.testing.assert_array_equal(long, [np.ones((4, 52))])
    np.testing.assert_array_equal(disk, [icon[1, 12:52, 12:52]])


def test_a_piece_that_finds_no_room_is_left_out() -> None:
    draw = np.random.default_rng(0)
    full, box = np.ones((64, 64), np.uint8), np.ones((5, 5), np.uint8)
    assert not collages.put(full, box, 10, np.zeros(2), 64, draw)
    plane = np.zeros((64, 64), np.uint8)
    assert collages.put(plane, box, 70, np.zeros(2), 64, draw) is False  # larger than the plane
    assert collages.put(plane, box, 10, np.full(2, 30.0), 8, draw)  # than its square: it may lie anywhere
    assert plane.sum() == 100
    apart = np.zeros((5, 50), np.uint8)
    apart[:, :2] = apart[:, -2:] = apart[2] = 1
    assert not collages.put(plane, apart, 8, np.zeros(2), 64, draw)  # its bridge would vanish


@pytest.mark.usefixtures("few")
def test_held_out_pictures_are_made_of_held_out_icons(icons: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = DataCfg(EmbeddedSource("collages64"), image_size=64)
    seen: list[set[bytes]] = []

    make = collages.collages

    def noted(own: np.ndarray, number: int, seed: int) -> MaskSet:
        seen.append({icon.tobytes() for icon in own})
        return make(own, number, seed)

    monkeypatch.setattr(collages, "collages", noted)
    train, test = load_splits(cfg)
    assert (len(train), len(test)) == (300, 40)
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == {icon.tobytes() for icon in icons}
    assert are_captions(train.prompts)
    assert data_fingerprint(cfg) == "embedded:collages64 64px 1ch"
    small, _ = load_splits(DataCfg(EmbeddedSource("collages64"), image_size=32))
    assert small.images.shape[1:] == (32, 32)
    assert small.prompts == [geometry.caption for geometry in describe(torch.from_numpy(small.images))]
