"""Fitting an image of any size into a square: aspect ratio kept, background padded evenly around it."""

import numpy as np
from PIL import Image

_CHUNK_PIXELS = 1 << 16  # running sums stay in the cache
_TIE = 1e-6  # a pixel covered by exactly one half is foreground, whatever the rounding of its sum


def _averages(cells: np.ndarray, n_out: int) -> np.ndarray:
    """[N,n_in,M] -> float64 [N,n_out,M]: mean of each of ``n_out`` equal parts of axis 1, cells shared by fractions.

    Differences of running sums, because a product with a weight matrix starts one thread per core for each small image.
    """
    n_in = cells.shape[1]
    edges = np.linspace(0.0, n_in, n_out + 1)
    below = np.minimum(edges.astype(np.int64), n_in - 1)
    part = (edges - below)[:, None]
    sums = np.cumsum(cells, axis=1, dtype=np.int32 if cells.dtype == np.uint8 else np.float64)
    here = cells[:, below]
    return np.diff(sums[:, below] + (part - 1) * here, axis=1) * (n_out / n_in)


def area_resize(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area-average masks [N,H,W] of 0/1 to [N,height,width], then threshold at 0.5; enlarging repeats pixels."""
    n, h_in, w_in = masks.shape
    if height % h_in == 0 and width % w_in == 0:
        return masks.repeat(height // h_in, axis=1).repeat(width // w_in, axis=2)
    if h_in % height == 0 and w_in % width == 0:
        h, w = h_in // height, w_in // width
        counts = masks.reshape(n, height, h, width * w).sum(axis=2, dtype=np.int32)
        return (2 * counts.reshape(n, height, width, w).sum(axis=3) >= h * w).astype(np.uint8)
    out = np.empty((n, height, width), np.uint8)
    step = max(1, _CHUNK_PIXELS // (h_in * w_in))
    for start in range(0, n, step):
        rows = _averages(masks[start : start + step], height)
        out[start : start + step] = _averages(rows.swapaxes(1, 2), width).swapaxes(1, 2) >= 0.5 - _TIE
    return out


def fitted_size(height: int, width: int, size: int, enlarge: bool = True) -> tuple[int, int]:
    """Height and width of an image within a frame of ``size`` pixels a side."""
    scale = size / max(height, width)
    if scale > 1 and not enlarge:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))


def _pad(images: np.ndarray, size: int) -> np.ndarray:
    """Zeros around [N,h,w,...] up to [N,size,size,...]; an odd row or column goes below or right."""
    _, h, w = images.shape[:3]
    top, left = (size - h) // 2, (size - w) // 2
    around = [(0, 0), (top, size - h - top), (left, size - w - left)] + [(0, 0)] * (images.ndim - 3)
    return np.pad(images, around)


def fit_masks(masks: np.ndarray, size: int, enlarge: bool = True) -> np.ndarray:
    """Masks [N,H,W] of 0/1 -> [N,size,size] of 0/1; without ``enlarge`` a smaller mask is only padded."""
    h, w = fitted_size(masks.shape[1], masks.shape[2], size, enlarge)
    resized = masks if (h, w) == masks.shape[1:] else area_resize(masks, h, w)
    return resized if (h, w) == (size, size) else _pad(resized, size)


def fit_rgb(image: np.ndarray, size: int) -> np.ndarray:
    """An RGB image [H,W,3] of 0..255 -> [size,size,3], black around it."""
    h, w = fitted_size(image.shape[0], image.shape[1], size, enlarge=True)
    if (h, w) != image.shape[:2]:
        image = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC))
    return _pad(image[None], size)[0]


def masks_to_rgb(masks: np.ndarray) -> np.ndarray:
    """Masks [N,H,W] of 0/1 as black and white RGB images [N,H,W,3] of 0/255."""
    return np.repeat(masks[..., None] * np.uint8(255), 3, axis=-1)
