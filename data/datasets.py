"""Whole batches at once: images from memory, or the cached moments of their latents."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from configs.data_cfg import AugmentCfg
from data.masks import MaskSet
from data.order import AUGMENT, FLIP, draw, uniform
from data.transforms import build_augmentation

Key = int | tuple[int, int]
Batch = dict[str, Any]


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 masks [B,H,W] of 0/1 -> float32 [B,1,H,W]; uint8 RGB [B,H,W,3] of 0..255 -> float32 [B,3,H,W] in [0, 1]."""
    # numpy converts on this thread; torch would wake its pool, which takes longer than the work itself
    if images.ndim == 3:
        return torch.from_numpy(images[:, None].astype(np.float32, order="C"))
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32, order="C") / np.float32(255))


def mirrored(images: np.ndarray) -> np.ndarray:
    """Left-right mirror image of each of [B,H,W] or [B,H,W,3]."""
    return images[:, :, ::-1]


def identity(batch: Any) -> Any:
    """A collate function for data sets that hand out whole batches."""
    return batch


def _epochs_and_indices(keys: Sequence[Key]) -> tuple[np.ndarray, np.ndarray]:
    """Two int64 [B]; a bare index belongs to epoch 0."""
    pairs = np.array([key if isinstance(key, tuple) else (0, key) for key in keys], np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


class _BatchDataset(Dataset[Batch]):
    """Keys are (epoch, index), or an index alone; ``__getitems__`` answers a list of them with one batch."""

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        raise NotImplementedError


class Augmenter:
    """Changes images [B,H,W] or [B,H,W,3] by draws that depend on (seed, epoch, index) alone."""

    def __init__(self, augment: AugmentCfg, image_size: int, seed: int) -> None:
        self.hflip, self.seed = augment.hflip, seed
        self._change = None if augment.only_hflip else build_augmentation(augment, image_size)

    def __call__(self, images: np.ndarray, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        if self._change is not None:
            seeds = draw(self.seed, epochs, indices, AUGMENT)
            return np.stack([self._change(image, int(seed)) for image, seed in zip(images, seeds, strict=True)])
        if self.hflip:
            flip = uniform(self.seed, epochs, indices, FLIP) < self.hflip
            images[flip] = mirrored(images[flip])
        return images


class ImageDataset(_BatchDataset):
    """{"image": float32 [B,C,H,W] in [0, 1], "prompt": list[str], "index": int64 [B]}."""

    def __init__(self, masks: MaskSet, augment: AugmentCfg, seed: int) -> None:
        self.masks = masks
        self._augmented = Augmenter(augment, masks.images.shape[1], seed)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        epochs, indices = _epochs_and_indices(keys)
        images = self._augmented(self.masks.images[indices], epochs, indices)
        prompts = [self.masks.prompts[i] for i in indices]
        return {"image": to_tensor(images), "prompt": prompts, "index": torch.from_numpy(indices.copy())}


class LatentDataset(_BatchDataset):
    """{"moments": [B,2C,h,w], "prompt": list[str], "index": int64 [B]}, and with ``images`` "image", as ImageDataset.

    ``moments`` [V,N,2C,h,w]: variant 0 is each image as it is; variant 1, if there, its mirror image, taken for just
    those (seed, epoch, index) for which ``ImageDataset`` mirrors the image. ``images`` [N,H,W]: what was encoded.
    """

    def __init__(
        self, moments: Tensor, prompts: list[str], hflip: float, seed: int, images: np.ndarray | None = None
    ) -> None:
        self.moments, self.prompts, self.hflip, self.seed, self.images = moments, prompts, hflip, seed, images

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        epochs, indices = _epochs_and_indices(keys)
        variant = np.zeros(len(indices), np.int64)
        if len(self.moments) > 1:
            variant += uniform(self.seed, epochs, indices, FLIP) < self.hflip
        index = torch.from_numpy(indices.copy())
        where, on_gpu = self.moments.device, self.moments.is_cuda  # whose unfinished work need not be waited for
        places = (value.to(where, non_blocking=on_gpu) for value in (torch.from_numpy(variant), index))
        moments = self.moments[tuple(places)]
        batch = {"moments": moments, "prompt": [self.prompts[i] for i in indices], "index": index}
        if self.images is None:
            return batch
        images = self.images[indices]
        images[variant == 1] = mirrored(images[variant == 1])
        return batch | {"image": to_tensor(images)}
