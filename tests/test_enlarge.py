"""Enlarged masks: the mask itself at its own size, a smooth outline when large, nothing that rounding decides."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.enlarge import enlarged, outlines
from data.fit import area_resize
from tests.own_masks import piece


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.integers(1, 24), st.integers(1, 9), st.floats(0, 1))
def test_shrunk_again_it_is_the_mask(seed: int, height: int, width: int, times: int, share: float) -> None:
    """Noise has what is hardest: single pixels, holes of one pixel, corners that touch."""
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    large = enlarged(mask, times)
    assert large.shape == (times * height, times * width)
    assert large.dtype == np.uint8
    assert set(np.unique(large)) <= {0, 1}
    assert (area_resize(large[None], height, width)[0] == mask).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(2, 8), st.floats(0.1, 0.9))
def test_turned_and_mirrored_masks_are_enlarged_alike(seed: int, side: int, times: int, share: float) -> None:
    """Blurred diagonals are at one half exactly: which side these fall on must not be a matter of the last digit."""
    mask = (np.random.default_rng(seed).random((side, side)) < share).astype(np.uint8)
    large = enlarged(mask, times)
    for change in (np.transpose, np.flipud, np.fliplr, np.rot90):
        assert (enlarged(np.ascontiguousarray(change(mask)), times) == change(large)).all()


def filled(lines: list[np.ndarray], height: int, width: int, times: int) -> np.ndarray:
    """What lies within an odd number of closed lines, [times*height,times*width] of 0/1."""
    y, x = ((np.arange(times * side) + 0.5) / times for side in (height, width))
    inside = np.zeros((times * height, times * width), np.uint8)
    for line in lines:
        for (x0, y0), (x1, y1) in zip(line, np.roll(line, -1, axis=0), strict=True):
            if y0 != y1:
                rows = (y >= min(y0, y1)) & (y < max(y0, y1))
                at = x0 + (y[rows] - y0) * (x1 - x0) / (y1 - y0)
                inside[rows] ^= (x[None] > at[:, None]).astype(np.uint8)
    return inside


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 20), st.floats(0, 1))
def test_a_path_encloses_what_is_foreground(seed: int, height: int, width: int, share: float) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    lines = outlines(mask)
    for line in lines:
        assert line.ndim == 2
        assert (line >= 0).all()
        assert (line <= (width, height)).all()
    again = area_resize(filled(lines, height, width, 16)[None], height, width)[0]
    assert (again != mask).sum() <= 2 + 0.02 * mask.size  # noise is the hardest: some pixels are nearly half full


def test_paths_of_what_has_no_outline_or_only_the_frame() -> None:
    assert outlines(np.zeros((3, 5), np.uint8)) == []
    [line] = outlines(np.ones((3, 5), np.uint8))
    assert [*line.min(0), *line.max(0)] == [0, 0, 5, 3]
    assert cv2.contourArea(line.astype(np.float32)) == pytest.approx(15, abs=0.02)


def test_a_ring_is_two_circles() -> None:
    mask = np.zeros((64, 64), np.uint8)
    cv2.circle(mask, (32, 32), 24, 1, -1)
    cv2.circle(mask, (32, 32), 12, 0, -1)
    for line, radius in zip(sorted(outlines(mask), key=np.ptp), (12, 24), strict=True):
        assert len(line) < 150
        assert np.hypot(*(line - 32.5).T) == pytest.approx(radius, abs=0.5)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("kind", ["disk", "ring", "ellipse", "noise", "triangle", "star"])
@pytest.mark.parametrize("times", [2, 3, 4, 8])
def test_it_is_nearer_to_what_was_drawn_large_than_repeated_pixels_are(kind: str, times: int) -> None:
    draw = np.random.default_rng(0)
    nearer = []
    for _ in range(12):
        plane = np.zeros((48 * times, 48 * times), np.uint8)
        own = piece(kind, draw.uniform(8, 20) * times, draw)
        y, x = (int(v) for v in draw.integers(0, 48 * times - len(own), 2))
        plane[y : y + len(own), x : x + len(own)] = own
        small = area_resize(plane[None], 48, 48)[0]
        repeated = small.repeat(times, 0).repeat(times, 1)
        nearer.append(iou(enlarged(small, times), plane) - iou(repeated, plane))
    assert np.mean(nearer) > 0


def test_a_disk_has_one_outline_without_stairs() -> None:
    """Of stairs, all edges are along the axes, so that an outline is as long as that of the square around it."""
    mask = np.zeros((40, 40), np.uint8)
    cv2.circle(mask, (20, 20), 12, 1, -1)
    lengths = []
    for large in (enlarged(mask, 8), mask.repeat(8, 0).repeat(8, 1)):
        outlines, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        assert len(outlines) == 1
        lengths.append(cv2.arcLength(outlines[0], closed=True))
    assert lengths[0] < 0.87 * lengths[1]
    assert lengths[0] == pytest.approx(2 * np.pi * 12.5 * 8, rel=0.08)  # a chain of pixels is up to 8 % longer


def test_empty_full_and_single_pixels_stay_what_they_are() -> None:
    for value in (0, 1):
        assert (enlarged(np.full((5, 7), value, np.uint8), 4) == value).all()
    dot = np.zeros((9, 9), np.uint8)
    dot[4, 4] = 1
    large = enlarged(dot, 8)
    assert 8 * 8 / 2 <= large.sum() <= 1.5 * 8 * 8
    assert large[32:40, 32:40].sum() >= 32
