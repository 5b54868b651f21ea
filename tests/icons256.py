"""The masks that the model icons256 has learned from: those of data/icons64.npz, drawn anew with 256 pixels.

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz package/json
    .venv/bin/python -m pip install resvg-py
    .venv/bin/python -m tests.icons256 package/json .     # writes icons256-train and icons256-test

Each stored icon tells its set, not its name there: it is looked for among all icons of the set, framed alike (the
longer side of what is drawn is 7/8 of the frame, in its middle) and shrunk. What is not found again (IoU below 0.9) is
left out. Held-out icons are those of the preset icons.
"""

import io
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.presets import ICONS
from data.embedded import stored
from data.split import split_by_content

SIDE, SMALL = 256, 64
FILLED = 7 / 8  # of the frame
FOUND = 0.9  # IoU at 64 pixels
Box = tuple[float, float, float]  # left, top and side of a square, in units of the SVG


def rendered(body: str, box: Box) -> np.ndarray:
    """[SIDE,SIDE] of 0/1: what covers at least half of a pixel."""
    import resvg_py

    left, top, side = box
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black" '
           f'width="{SIDE}" height="{SIDE}" viewBox="{left} {top} {side} {side}">{body}</svg>')  # fmt: skip
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    return (np.asarray(image)[..., 3] > 127).astype(np.uint8)


def framed(mask: np.ndarray, box: Box) -> Box:
    """The square around what is drawn in ``mask`` [SIDE,SIDE], a picture of ``box``, that it fills as icons are to."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    unit, side = box[2] / SIDE, max(bottom - top, right - left) / FILLED
    return (box[0] + unit * ((left + right) - side) / 2, box[1] + unit * ((top + bottom) - side) / 2, unit * side)


def shrunk(mask: np.ndarray) -> np.ndarray:
    """[SIDE,SIDE] -> [SMALL,SMALL] of 0/1 by area."""
    cell = SIDE // SMALL
    return (mask.reshape(SMALL, cell, SMALL, cell).mean((1, 3)) >= 0.5).astype(np.uint8)


def drawn(icon: dict[str, Any]) -> np.ndarray | None:
    """One icon of a set, framed, [SIDE,SIDE] of 0/1; None where nothing of it is seen, or it is no SVG."""
    side = max(icon["width"], icon["height"])
    box = (icon["left"] - (side - icon["width"]) / 2, icon["top"] - (side - icon["height"]) / 2, side)
    try:
        for _ in range(2):
            mask = rendered(icon["body"], box)
            if not mask.any():
                return None
            box = framed(mask, box)
        return rendered(icon["body"], box)
    except Exception as error:  # whatever the renderer says of a file that it cannot read
        print(f"left out: {error}", file=sys.stderr)
        return None


def read_set(path: Path) -> list[dict[str, Any]]:
    """The icons of a set of Iconify, each with its own or the set's size."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    frame = {"width": whole.get("width", 16), "height": whole.get("height", 16), "left": 0, "top": 0}
    return [frame | icon for _, icon in sorted(whole["icons"].items())]


def nearest(stored: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of the masks [N,P] the index of the one of [M,P] with the largest IoU, and that IoU."""
    a, b = stored.astype(np.float32), found.astype(np.float32)
    both = a @ b.T
    iou = both / np.maximum(a.sum(1)[:, None] + b.sum(1) - both, 1)
    best = iou.argmax(1)
    return best, iou[np.arange(len(a)), best]


def main(sets: Path, out: Path) -> None:
    masks = stored("icons64")
    with np.load(Path(__file__).parents[1] / "data" / "icons64.npz", allow_pickle=False) as file:
        sources = file["source"]
    held_out = set(split_by_content(masks, ICONS.val_fraction)[1].names)
    train, test = (out / f"icons256-{part}" for part in ("train", "test"))
    for folder in (train, test):
        folder.mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        for name in sorted(set(sources.tolist())):
            found = [x for x in pool.map(drawn, read_set(sets / f"{name}.json"), chunksize=64) if x is not None]
            own = np.flatnonzero(sources == name)
            best, iou = nearest(masks.images[own].reshape(len(own), -1), np.stack([shrunk(x).ravel() for x in found]))
            print(f"{name}: {(iou >= FOUND).sum()} of {len(own)}, mean IoU {iou.mean():.3f}", flush=True)
            for index, icon in zip(own[iou >= FOUND], best[iou >= FOUND], strict=True):
                folder = test if masks.names[index] in held_out else train
                Image.fromarray(found[icon] * np.uint8(255)).convert("1").save(folder / f"{index:05d}.png")
                with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"file_name": f"{index:05d}.png", "text": masks.prompts[index]}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
