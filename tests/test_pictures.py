import numpy as np
import pytest

from scripts.pictures import BLOCK_GAP, CELL, GAP, MARGIN, PAPER, SHAPE, mask_grid

LEFT = np.zeros((4, 4), np.uint8)
LEFT[:, :2] = 1


def colours(picture) -> np.ndarray:
    return np.asarray(picture)


def test_size_is_the_sum_of_cells_gaps_and_margins():
    blocks = {"": [[LEFT] * 3, [LEFT] * 3]}
    picture = mask_grid(blocks, ["", ""], 20)
    assert picture.size == (2 * MARGIN + 3 * 20 + 2 * GAP, 2 * MARGIN + 2 * 20 + GAP)
    wider = mask_grid({"": blocks[""], " ": blocks[""]}, ["", ""], 20)
    assert wider.width == picture.width + BLOCK_GAP + 3 * 20 + 2 * GAP


def test_enlarged_masks_are_crisp():
    pixels = colours(mask_grid({"": [[LEFT]]}, [""], 20))[MARGIN : MARGIN + 20, MARGIN : MARGIN + 20]
    assert (pixels[:, :10] == SHAPE).all()
    assert (pixels[:, 10:] == CELL).all()


def test_labels_take_room_beside_and_above_and_long_ones_are_cut():
    plain = mask_grid({"": [[LEFT]]}, [""], 32)
    named = mask_grid({"4 steps": [[LEFT]]}, ["a cat"], 32)
    assert named.width > plain.width
    assert named.height > plain.height
    assert (colours(named)[:MARGIN] == PAPER).any()
    long = mask_grid({"4 steps": [[LEFT]]}, ["word " * 50], 32, label_width=120)
    assert long.width <= plain.width + 120 + MARGIN


@pytest.mark.parametrize("label", ["", "é ü ñ", "漢字 🦒", "a\nb\tc", "\u202e"])
def test_any_label_can_be_drawn(label):
    mask_grid({label: [[LEFT]]}, [label], 8)


def test_rows_without_a_label_and_empty_grids_are_refused():
    with pytest.raises(ValueError, match="2 rows for 1 labels"):
        mask_grid({"a": [[LEFT], [LEFT]]}, ["x"], 8)
    with pytest.raises(ValueError, match="no mask"):
        mask_grid({}, [], 8)


def test_an_image_in_colour_keeps_its_colours():
    image = np.full((4, 4, 3), (200, 30, 60), np.uint8)
    pixels = colours(mask_grid({"": [[image]]}, [""], 8))[MARGIN : MARGIN + 8, MARGIN : MARGIN + 8]
    assert (pixels == (200, 30, 60)).all()
