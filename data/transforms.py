"""Random changes of one image, by albumentations; everything about that package stays in this file."""

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from configs.data_cfg import AugmentCfg

_NEAREST, _LINEAR = 0, 1  # cv2.INTER_NEAREST, cv2.INTER_LINEAR


def build_augmentation(cfg: AugmentCfg, image_size: int = 32) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """A function (image, seed) -> changed image of the same shape and type, or None where ``cfg`` changes nothing.

    The image is a mask [H,W] of 0/1, which stays one after every transform, or RGB [H,W,3] of 0..255. The result
    depends on the image and the seed alone. ``image_size`` scales the elastic change.
    """
    return None if cfg.is_none else Augmentation(cfg, image_size)


class Augmentation:
    """See ``build_augmentation``. Imports albumentations when made."""

    def __init__(self, cfg: AugmentCfg, image_size: int) -> None:
        self._mask_pipeline = _pipeline(cfg, image_size, _NEAREST)
        self._rgb_pipeline = _pipeline(cfg, image_size, _LINEAR)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        pipeline = self._mask_pipeline if image.ndim == 2 else self._rgb_pipeline
        pipeline.set_random_state(np.random.Generator(np.random.PCG64(seed)), random.Random(seed))
        # nearest-neighbour interpolation takes every pixel from the mask or the background, so 0/1 stays 0/1
        return np.ascontiguousarray(pipeline(image=image)["image"])


def _pipeline(cfg: AugmentCfg, image_size: int, interpolation: int) -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or its import asks the network for newer versions
    import albumentations as A

    # smoothed noise has a spread of 0.16 / sigma: with these two, pixels move by about 4 % of the image size
    sigma, alpha = image_size / 8, image_size**2 / 32
    affine = A.Affine(
        translate_percent=(-cfg.shift, cfg.shift), scale=(1 - cfg.scale, 1 + cfg.scale), keep_ratio=True,
        rotate=(-cfg.rotate, cfg.rotate), interpolation=interpolation, fill=0, p=cfg.affine,
    )  # fmt: skip
    elastic = A.ElasticTransform(alpha=alpha, sigma=sigma, interpolation=interpolation, fill=0, p=cfg.elastic)
    stages = [
        (cfg.hflip, A.HorizontalFlip(p=cfg.hflip)),
        (cfg.vflip, A.VerticalFlip(p=cfg.vflip)),
        (cfg.rot90, A.RandomRotate90(p=cfg.rot90)),
        (cfg.affine, affine),
        (cfg.elastic, elastic),
    ]
    return A.Compose([transform for probability, transform in stages if probability > 0])
