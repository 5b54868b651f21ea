"""How the masks of icons256 are framed and found again; the renderer of SVG is none of our packages."""

from typing import Any

import icons256
import numpy as np
import pytest


def rectangle(body: str, box: icons256.Box) -> np.ndarray:
    """In the place of the renderer: ``body`` names a rectangle's left, top, right and bottom."""
    left, top, right, bottom = map(float, body.split())
    x, y = (start + (np.arange(256) + 0.5) * box[2] / 256 for start in box[:2])
    return ((y >= top) & (y < bottom))[:, None].astype(np.uint8) * ((x >= left) & (x < right)).astype(np.uint8)


@pytest.mark.parametrize("frame", [(24, 24, 0, 0), (24, 12, 0, 0), (512, 640, -100, 50)])
def test_an_icon_fills_seven_eighths_of_its_frame(
    frame: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(icons256, "rendered", rectangle)
    width, height, left, top = frame
    icon: dict[str, Any] = {"width": width, "height": height, "left": left, "top": top}
    body = f"{left + 0.1 * width} {top + 0.5 * height} {left + 0.5 * width} {top + 0.6 * height}"
    mask = icons256.drawn(icon | {"body": body})
    assert mask is not None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert columns[[0, -1]] == pytest.approx([16, 239], abs=1)
    assert rows[0] + rows[-1] == pytest.approx(255, abs=2)
    assert len(rows) / len(columns) == pytest.approx(0.1 * height / (0.4 * width), rel=0.05)
    assert icons256.drawn(icon | {"body": "-900 -900 -800 -800"}) is None


def test_masks_are_found_again() -> None:
    masks = (np.random.default_rng(0).random((6, 64)) > 0.5).astype(np.uint8)
    best, iou = icons256.nearest(masks[[4, 1]], masks)
    assert best.tolist() == [4, 1]
    assert iou.tolist() == [1.0, 1.0]
    shifted = masks[[2]].copy()
    shifted[0, :8] ^= 1
    best, iou = icons256.nearest(shifted, masks)
    assert best.tolist() == [2]
    assert 0.5 < iou[0] < 0.9
