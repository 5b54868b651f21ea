"""500 masks without captions, as a user might bring: ``python -m tests.own_masks FOLDER``.

300 drawings of one to five pieces (disks, ellipses, boxes, triangles, stars, rings, smoothed noise), 96 to 160 pixels,
and 200 symbols of the font DejaVu Sans. No model here was trained on either. What ``scripts.quickstart --data FOLDER``
makes of them: docs/results.md.
"""

import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SHAPES, SYMBOLS = 300, 200
CODES = (*range(0x2600, 0x27C0), *range(0x1F600, 0x1F650))
"""Unicode's miscellaneous symbols, dingbats and faces, as far as the font has them."""


def polygon(radii: list[float], turn: float) -> np.ndarray:
    """Corners [n,2] at equal angles and these distances from 0."""
    angles = turn + np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array(radii)[:, None]


def piece(kind: str, radius: float, draw: np.random.Generator) -> np.ndarray:
    """One piece, [2r+5, 2r+5] of 0/1."""
    side = 2 * int(radius) + 5
    plane, centre, turn = np.zeros((side, side), np.uint8), side // 2, draw.uniform(0, 2 * np.pi)
    if kind in ("disk", "ring"):
        cv2.circle(plane, (centre, centre), int(radius), 1, -1)
        if kind == "ring":
            cv2.circle(plane, (centre, centre), int(radius * draw.uniform(0.4, 0.7)), 0, -1)
    elif kind == "ellipse":
        axes = (int(radius), max(2, int(radius * draw.uniform(0.25, 0.45))))
        cv2.ellipse(plane, (centre, centre), axes, float(np.degrees(turn)), 0, 360, 1, -1)
    elif kind == "noise":
        noise = ndimage.gaussian_filter(draw.normal(size=(side, side)), radius / 3)
        y, x = np.indices((side, side)) - centre
        noise = noise / noise.std() + 3 * (1 - 1.5 * np.hypot(x, y) / radius)
        pieces, _ = ndimage.label((noise > 0) & (np.hypot(x, y) <= radius), np.ones((3, 3)))
        plane = (pieces == np.bincount(pieces[pieces > 0]).argmax()).astype(np.uint8)
    else:
        radii = {"box": [radius] * 4, "triangle": [radius] * 3, "star": [radius, 0.45 * radius] * 5}[kind]
        cv2.fillPoly(plane, [np.round(polygon(radii, turn) + centre).astype(np.int32)], 1)
    return plane


def drawing(draw: np.random.Generator) -> np.ndarray:
    """One to five pieces of one kind, apart from each other, [S,S] of 0/1."""
    kinds = ("disk", "ring", "ellipse", "noise", "box", "triangle", "star")
    side, number, kind = int(draw.integers(96, 161)), int(draw.integers(1, 6)), str(draw.choice(kinds))
    radius = side * draw.uniform(0.07, 0.36 if number == 1 else 0.5 / (number + 1))
    plane = np.zeros((side, side), np.uint8)
    span = side * draw.uniform(0.6, 1.0)
    low = draw.uniform(0, side - span, 2)  # of the square that the pieces keep to, so that places differ
    for _ in range(200 * number):
        own = piece(kind, radius * draw.uniform(0.85, 1.15), draw)
        room = low + span - len(own)
        if (room <= low).any():
            low, span = np.zeros(2), float(side)
            continue
        y, x = (int(v) for v in draw.uniform(low, room))
        around = plane[max(0, y - 3) : y + len(own) + 3, max(0, x - 3) : x + len(own) + 3]
        if not around.any():
            plane[y : y + len(own), x : x + len(own)] |= own
            number -= 1
        if not number:
            break
    return plane


def font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 96)


def symbols() -> list[int]:
    """Codes of ``CODES`` that the font has."""
    missing = font().getmask("\uffff").getbbox()
    return [code for code in CODES if font().getmask(chr(code)).getbbox() not in (None, missing)]


def symbol(character: str) -> np.ndarray:
    """A character in the middle of a square, [S,S] of 0/1."""
    image = Image.new("L", (160, 160))
    ImageDraw.Draw(image).text((80, 80), character, 255, font(), "mm")
    left, top, right, bottom = image.getbbox()
    side = int(1.1 * max(right - left, bottom - top))
    plane = np.zeros((side, side), np.uint8)
    y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    plane[y : y + bottom - top, x : x + right - left] = np.asarray(image)[top:bottom, left:right] > 127
    return plane


def main(folder: str) -> None:
    out = Path(folder)
    out.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(SHAPES):
        Image.fromarray(drawing(draw) * 255).save(out / f"drawing-{i:03d}.png")
    for i, code in enumerate(draw.choice(symbols(), SYMBOLS, replace=False)):
        Image.fromarray(symbol(chr(code)) * 255).save(out / f"symbol-{i:03d}.png")
    print(f"{SHAPES + SYMBOLS} masks: {out}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m tests.own_masks FOLDER")
    main(sys.argv[1])
