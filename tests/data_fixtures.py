"""Small masks and folders that the data tests share."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.masks import MaskSet

# no flip, rotation or shift of it is itself
LETTER = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ],
    np.uint8,
)


def random_masks(n: int, size: int = 8, seed: int = 0) -> MaskSet:
    """``n`` masks of noise, all different."""
    images = np.random.default_rng(seed).integers(0, 2, (n, size, size), dtype=np.uint8)
    return MaskSet(images, [f"prompt {i}" for i in range(n)], [f"noise/{i}" for i in range(n)])


def write_mask(path: Path, mask: np.ndarray = LETTER) -> Path:
    """``mask`` as an 8-bit file of 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask * np.uint8(255)).save(path)
    return path


def write_masks(folder: Path, n: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """00.png, 01.png ... of noise; returns the masks."""
    masks = random_masks(n, size, seed).images
    for i, mask in enumerate(masks):
        write_mask(folder / f"{i:02d}.png", mask)
    return masks
