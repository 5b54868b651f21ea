"""Captions from geometry: golden masks, symmetries, and the measure of whether a mask follows its caption."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics.components import count_components
from metrics.geometry import COUNTS, PLACES, SHAPES, SIZES, Geometry, adherence, are_captions, describe, parse

N = 32
Y, X = np.mgrid[:N, :N] + 0.5


def disk(y: float, x: float, radius: float) -> np.ndarray:
    return np.hypot(Y - y, X - x) < radius


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    return (top < Y) & (top + height > Y) & (left < X) & (left + width > X)


GOLDEN = {
    "one medium round blob, upper left": disk(8, 8, 6),
    "one large round blob, centre": box(6, 6, 20, 20),
    "two small round blobs, upper left": disk(5, 5, 3) | disk(5, 14, 3),
    "three small round blobs, right": disk(6, 28, 3) | disk(16, 28, 3) | disk(26, 28, 3),
    "one medium hollow blob, centre": disk(16, 16, 9) & ~disk(16, 16, 7),
    "one medium long blob, bottom": box(26, 4, 4, 24),
    "one small long blob, top": np.roll(np.eye(N, dtype=bool), -9, 0) & (X > 9) & (X < 23) & (Y < 14),
    "one medium uneven blob, lower right": box(21, 15, 3, 15) | box(15, 21, 15, 3),
    "four medium uneven blobs, centre": (
        box(1, 1, 4, 12) | box(1, 1, 12, 4) | box(1, 19, 4, 12) | box(1, 27, 12, 4)
        | box(27, 1, 4, 12) | box(19, 1, 12, 4) | box(27, 19, 4, 12) | box(19, 27, 12, 4)
    ),
    "many small round blobs, left": np.logical_or.reduce([box(y, x, 2, 2) for y in range(2, 30, 6) for x in (3, 9)]),
    "nothing": np.zeros((N, N), bool),
}  # fmt: skip


def masks(*planes: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(planes).astype(np.uint8))


@pytest.mark.parametrize("caption", GOLDEN)
def test_a_mask_has_its_caption(caption: str) -> None:
    assert [geometry.caption for geometry in describe(masks(GOLDEN[caption]))] == [caption]


def test_masks_of_a_stack_do_not_touch_each_other() -> None:
    assert [geometry.caption for geometry in describe(masks(*GOLDEN.values()))] == list(GOLDEN)


@pytest.mark.parametrize(("width", "shape"), [(7, "round"), (8, "long"), (9, "long")])
def test_long_begins_at_twice_as_long_as_wide(width: int, shape: str) -> None:
    for plane in (box(10, 10, 4, width), box(10, 10, width, 4)):
        assert describe(masks(plane))[0].shape == shape


@pytest.mark.parametrize(("side", "hollow"), [(2, False), (3, True)])
def test_hollow_begins_at_a_tenth_of_the_filled_piece(side: int, hollow: bool) -> None:
    ring = box(10, 10, 8, 8) & ~box(12, 12, side, side)  # 4 of 64 pixels are less than a tenth, 9 are more
    assert (describe(masks(ring))[0].shape == "hollow") == hollow


def test_an_island_in_a_hole_is_a_piece_of_its_own() -> None:
    inside = box(2, 2, 24, 24) & ~box(6, 6, 16, 16) | box(12, 12, 4, 4)
    assert describe(masks(inside))[0].caption == "two large hollow blobs, centre"
    assert describe(masks(inside & ~box(12, 12, 4, 4)))[0].caption == "one large hollow blob, centre"


def test_specks_below_a_thousandth_are_not_looked_at() -> None:
    large = np.kron(disk(8, 8, 6), np.ones((2, 2), bool))  # 64x64: a piece of 4 pixels is a speck, one of 5 is not
    large[60, 50:54] = True
    assert describe(masks(large))[0].caption == "one medium round blob, upper left"
    large[60, 54] = True
    assert describe(masks(large))[0].count == "two"


def test_turning_a_mask_over_turns_its_place_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    planes = [np.kron(rng.random((8, 8)) < share, np.ones((4, 4), bool)) for share in np.linspace(0.02, 0.5, 100)]
    row = {place: y for y in range(3) for place in PLACES[y]}
    column = {PLACES[y][x]: x for y in range(3) for x in range(3)}
    plain, mirrored, turned = (
        describe(masks(*map(change, planes))) for change in (np.asarray, np.fliplr, np.transpose)
    )
    for a, b, c in zip(plain, mirrored, turned, strict=True):
        assert (a.count, a.size, a.shape) == (b.count, b.size, b.shape) == (c.count, c.size, c.shape)
        if a.place:
            assert (row[b.place], column[b.place]) == (row[a.place], 2 - column[a.place])
            assert (row[c.place], column[c.place]) == (column[a.place], row[a.place])
    for geometry, number in zip(plain, count_components(masks(*planes)).tolist(), strict=True):
        assert geometry.count == (COUNTS[min(number, 6) - 1] if number else "nothing")


def test_every_caption_reads_back_and_other_texts_do_not() -> None:
    places = [place for line in PLACES for place in line]
    every = [Geometry(*words) for words in itertools.product(COUNTS, SIZES, SHAPES, places)] + [Geometry("nothing")]
    assert [parse(geometry.caption) for geometry in every] == every
    assert len({geometry.caption for geometry in every}) == 6 * 3 * 4 * 9 + 1
    for text in ("", "a cat", "two small round blobs", "two small round blobs, upper left corner", "seven small"):
        assert parse(text) is None


@pytest.mark.parametrize("text", [
    "Two small round blobs, centre", "two small round blobs, center.", "two  small round blobs centre",
])  # fmt: skip
def test_a_caption_may_be_written_as_people_write(text: str) -> None:
    assert parse(text) == Geometry("two", "small", "round", "centre")
    assert parse("Nothing.") == Geometry("nothing")


def test_adherence_is_the_share_of_masks_with_each_word_right() -> None:
    drawn = masks(*[GOLDEN["two small round blobs, upper left"]] * 4, GOLDEN["nothing"])
    prompts = ["two small round blobs, upper left", "two large round blobs, top", "one small round blob, upper left",
               "a cat", "nothing"]  # fmt: skip
    assert adherence(drawn, prompts) == {
        "count_right": 3 / 4, "size_right": 3 / 4, "shape_right": 1.0, "place_right": 3 / 4, "all_right": 2 / 4,
    }  # fmt: skip
    assert adherence(drawn, ["a cat"] * 5) == {}
    assert are_captions(prompts)
    assert not are_captions(["a cat", "a dog", "nothing"])
