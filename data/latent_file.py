"""Encoded training sets on disk, so that the next training on the same masks and autoencoder begins at once."""

import contextlib
import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs.whole_file import write_whole

KEPT = 4
"""Files that stay; the ones used longest ago go first."""


def latents_key(images: np.ndarray, how: str) -> str:
    """Identity of the moments of ``images`` [N,...]; ``how`` tells everything else that decides them."""
    digest = hashlib.sha256(f"{images.shape} {images.dtype} {how}".encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()[:24]


def read_latents(folder: Path, key: str) -> Tensor | None:
    """Moments [V,N,2C,h,w] that were kept under ``key``, mapped from their file, not read; None: there are none."""
    path = folder / f"{key}.npy"
    try:
        moments = np.load(path, mmap_mode="c", allow_pickle=False)  # copies of what is written to; nothing writes
    except OSError:  # not there
        return None
    except (ValueError, EOFError):  # not what it was: make room for a whole one
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):  # another user's file
        path.touch()
    return torch.from_numpy(moments)


def keep_latents(folder: Path, key: str, moments: Tensor) -> None:
    """Keep moments [V,N,2C,h,w] under ``key``; where that fails, one warning says so."""
    if (folder / f"{key}.npy").exists():  # another process of this training was faster
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{key}.npy", lambda file: np.save(file, moments.numpy()))
    except OSError as reason:
        warnings.warn(f"encoded masks are not kept for the next training ({reason})", stacklevel=2)
        return
    for old in sorted(folder.glob("*.npy"), key=last_used, reverse=True)[KEPT:]:
        with contextlib.suppress(OSError):
            old.unlink()


def last_used(path: Path) -> float:
    """When a file was written or read, in seconds; 0 if another process has just removed it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
