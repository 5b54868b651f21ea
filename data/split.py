"""A held-out split that is frozen by content.

Each mask is brought to a form that flips, rotations by 90 degrees and shifts do not change; the SHA-256 of that form,
read as a number in [0, 1), decides its side. So no copy of a held-out mask is trained on, whatever the order or the
names of the files, and adding masks never moves another one to the other side.
"""

import hashlib
import warnings
from collections.abc import Iterable

import numpy as np

from data.masks import DataError, MaskSet


def canonical_hashes(images: np.ndarray) -> list[bytes]:
    """SHA-256 of the canonical form of each mask [N,H,W], cropped to its foreground, or RGB image [N,H,W,3], whole."""
    return [hashlib.sha256(_smallest_form(crop)).digest() for crop in _crops(images)]


def _crops(images: np.ndarray) -> Iterable[np.ndarray]:
    if images.ndim == 4:
        return images
    rows, columns = np.any(images, axis=2), np.any(images, axis=1)
    top, left = rows.argmax(axis=1), columns.argmax(axis=1)
    bottom = np.where(np.any(rows, axis=1), rows.shape[1] - rows[:, ::-1].argmax(axis=1), 0)
    right = np.where(np.any(columns, axis=1), columns.shape[1] - columns[:, ::-1].argmax(axis=1), 0)
    boxes = zip(images, top, bottom, left, right, strict=True)
    return (image[t:b, x:y] for image, t, b, x, y in boxes)


def _smallest_form(image: np.ndarray) -> bytes:
    """The smallest (shape, bytes) among the 8 flips and rotations of [h,w] or [h,w,3]."""
    turned = image.swapaxes(0, 1)
    h, w = image.shape[:2]
    upright = (image,) if h < w else (turned,) if w < h else (image, turned)
    forms = [form[a, b].tobytes() for form in upright for a in _WAYS for b in _WAYS]
    return b"%dx%d:" % (min(h, w), max(h, w)) + min(forms)


_WAYS = (slice(None), slice(None, None, -1))


def split_by_content(masks: MaskSet, val_fraction: float) -> tuple[MaskSet, MaskSet]:
    """(training, held-out): held out is what hashes below ``val_fraction``, in a tiny set at least one mask.

    Raises:
        DataError: fewer than two masks that differ by more than a flip, a rotation or a shift.
    """
    hashes = canonical_hashes(masks.images)
    groups = sorted(set(hashes))
    if len(groups) < 2:
        raise DataError(
            f"the data set has {len(masks)} masks but only {len(groups)} that differs from the others by more than "
            "a flip, a rotation or a shift; training and validation need at least 2: add masks"
        )
    below = sum(int.from_bytes(group, "big") < val_fraction * 2.0**256 for group in groups)
    held_out = set(groups[: min(max(below, 1), len(groups) - 1)])
    is_held_out = np.array([digest in held_out for digest in hashes])
    return masks.select(np.flatnonzero(~is_held_out)), masks.select(np.flatnonzero(is_held_out))


def without_copies(train: MaskSet, test: MaskSet) -> MaskSet:
    """``train`` without the masks that are a flip, rotation or shift of one in ``test``; warns how many there were.

    Raises:
        DataError: nothing would be left to train on.
    """
    known = set(canonical_hashes(test.images))
    new = np.array([digest not in known for digest in canonical_hashes(train.images)], dtype=bool)
    copies = len(train) - int(new.sum())
    if copies == len(train):
        raise DataError(f"all {copies} training masks are also in the test set; use a test folder with other masks")
    if copies:
        warnings.warn(f"{copies} training masks are copies of test masks and are left out of training", stacklevel=2)
        return train.select(np.flatnonzero(new))
    return train
