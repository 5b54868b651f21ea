"""A set of masks with prompts in memory, and the one error that data raises."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class DataError(ValueError):
    """Data that cannot be used; one sentence says what was wrong, the value, and what to do."""


@dataclass(frozen=True)
class MaskSet:
    """Images with their prompts, all of one size."""

    images: np.ndarray
    """uint8: [N,H,W] of 0 and 1 for masks, [N,H,W,3] of 0..255 for RGB."""
    prompts: list[str]
    """One prompt per image; an empty one means unconditional."""
    names: list[str]
    """Where each image came from: a path below the folder, or "animals32/123"."""

    def __post_init__(self) -> None:
        assert self.images.dtype == np.uint8, self.images.dtype
        assert self.images.ndim in (3, 4), self.images.shape
        assert len(self.images) == len(self.prompts) == len(self.names), (len(self.images), len(self.prompts))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """Short SHA-256 of how many there are, of which size, from where and with which prompts, in their order."""
        told = "\0".join([str(self.images.shape), *self.names, *self.prompts])
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    def select(self, indices: np.ndarray | Sequence[int]) -> "MaskSet":
        """The images at ``indices`` (integers), in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return MaskSet(self.images[chosen], [self.prompts[i] for i in chosen], [self.names[i] for i in chosen])
