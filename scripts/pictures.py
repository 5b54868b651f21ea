"""Pictures of masks in rows and blocks, drawn with Pillow alone."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER = (250, 249, 246)
CELL = (30, 41, 59)
SHAPE = (241, 245, 249)
INK = (30, 41, 59)
MARGIN = 16
GAP = 3
BLOCK_GAP = 22
LABEL_WIDTH = 260

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Mask = np.ndarray
"""[H,W] bool, 0/1 or 0..255 (binary), or [H,W,3] uint8 (an ordinary image)."""


def cell_for(side: int) -> int:
    """Pixels of a cell that shows masks of ``side`` pixels well, and several of them beside each other."""
    return min(128, max(64, side))


def mask_grid(
    blocks: dict[str, list[list[Mask]]], row_labels: Sequence[str], cell: int, *, label_width: int = LABEL_WIDTH
) -> Image.Image:
    """Rows of masks, labelled at the left, in blocks side by side, each with its name on top.

    ``blocks[name][row]`` are the masks of a row: one row per label in every block, rows of one block equally long.
    A mask fills a square cell of ``cell`` pixels; a label wider than ``label_width`` is cut with an ellipsis.

    Raises:
        ValueError: if a block has another number of rows than there are labels, or nothing is to be drawn.
    """
    for name, rows in blocks.items():
        if len(rows) != len(row_labels):
            raise ValueError(f"block {name!r} has {len(rows)} rows for {len(row_labels)} labels")
    columns = {name: max((len(row) for row in rows), default=0) for name, rows in blocks.items()}
    if not sum(columns.values()):
        raise ValueError("there is no mask to draw")

    font = ImageFont.load_default(size=min(20, max(11, cell // 4)))
    labels = [_fit(label, font, label_width) for label in row_labels]
    left = MARGIN + max((_width(label, font) for label in labels), default=0) + (MARGIN if any(labels) else 0)
    top = MARGIN + (round(_size(font) * 1.6) if any(blocks) else 0)
    widths = [_span(columns[name], cell) for name in blocks]
    picture = Image.new("RGB", (
        left + sum(widths) + BLOCK_GAP * (len(widths) - 1) + MARGIN, top + _span(len(labels), cell) + MARGIN,
    ), PAPER)
    draw = ImageDraw.Draw(picture)

    for i, label in enumerate(labels):
        y = top + i * (cell + GAP) + cell // 2
        draw.text((left - MARGIN + 2, y), label, INK, font, anchor="rm")
    x = left
    for name, width in zip(blocks, widths, strict=True):
        draw.text((x + width // 2, top - round(_size(font) * 0.5)), _fit(name, font, width), INK, font, anchor="ms")
        for i, row in enumerate(blocks[name]):
            for j, mask in enumerate(row):
                picture.paste(_tile(mask, cell), (x + j * (cell + GAP), top + i * (cell + GAP)))
        x += width + BLOCK_GAP
    return picture


def _tile(mask: Mask, cell: int) -> Image.Image:
    """A mask as a square of ``cell`` pixels in the two colours: crisp when enlarged, averaged when shrunk."""
    array = np.asarray(mask)
    if array.ndim == 3:
        tile = Image.fromarray(array.astype(np.uint8))
        return tile.resize((cell, cell), Image.Resampling.NEAREST if cell >= max(tile.size) else Image.Resampling.BOX)
    alpha = Image.fromarray(((array > 0) * 255).astype(np.uint8))
    scale = cell / max(alpha.size)
    size = (max(1, round(alpha.width * scale)), max(1, round(alpha.height * scale)))
    alpha = alpha.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
    tile = Image.new("RGB", (cell, cell), CELL)
    tile.paste(SHAPE, ((cell - size[0]) // 2, (cell - size[1]) // 2), alpha)
    return tile


def _span(count: int, cell: int) -> int:
    """Pixels of ``count`` cells with gaps between them."""
    return count * cell + max(0, count - 1) * GAP


def _fit(text: str, font: Font, width: int) -> str:
    """One line of ``text`` that is at most ``width`` pixels wide."""
    # Pillow's own font has no accented letters: draw the letter below the accent.
    plain = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    line = " ".join("".join(plain).split())[:300]
    if _width(line, font) <= width:
        return line
    while line and _width(line + "…", font) > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _width(text: str, font: Font) -> int:
    return int(np.ceil(font.getlength(text)))


def _size(font: Font) -> float:
    return font.size if isinstance(font, ImageFont.FreeTypeFont) else 11
