"""A given mask to start from or to keep part of, and a sketch to follow, from the files that a user names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.checks import ConfigError
from configs.generate_cfg import GenerateCfg
from configs.whole_file import file_hash

if TYPE_CHECKING:
    from torch import Tensor

    from samplers.generates import Edit


def read_sketch(cfg: GenerateCfg, module: Any) -> tuple[Tensor | None, dict[str, Any]]:
    """The sketch [1,1,h,w] that ``cfg`` names, at the size that the model looks at, and what is said of it in files.

    Raises:
        DataError: a file that is no readable image.
        ConfigError: a model that reads no sketches, or a sketch without a line.
    """
    if not cfg.sketch:
        return None, {}
    if not module.cfg.backbone.sketch:
        raise ConfigError(f"sketch is {cfg.sketch!r}, but this model reads none: train one that does with "
                          "--init MODEL --backbone.sketch 64 --sketch.only True, or start from a mask with --init-mask")
    from data.images import read_drawing

    path = Path(cfg.sketch).expanduser()
    return make_sketch(read_drawing(path), cfg.sketch, module), {"sketch": file_hash(path)}


def make_sketch(given: np.ndarray, name: str, module: Any) -> Tensor:
    """A sketch [H,W] of 0/1 as the model reads it: [1,1,h,w]. Raises ConfigError (see ``read_sketch``).

    If most of its frame is bright, it is dark on bright, and is turned round.
    """
    import torch

    from data.fit import fit_masks
    from models.sketch import CELL

    frame = np.concatenate([given[0], given[-1], given[:, 0], given[:, -1]])
    drawn = 1 - given if frame.mean() > 0.5 else given
    if not drawn.any():
        raise ConfigError(f"sketch is {name!r}, but nothing is drawn in it: draw what the masks should follow")
    size = min(module.cfg.data.image_size, CELL * module.latent_shape[-1])
    fitted = fit_masks(thickened(drawn, size)[None], size)
    if not fitted.any():
        raise ConfigError(f"sketch is {name!r}, but nothing of it is left at {size}x{size} pixels: draw it larger")
    return torch.from_numpy(fitted[None]).float()


def thickened(drawn: np.ndarray, size: int) -> np.ndarray:
    """Lines [H,W] of 0/1, thick enough to be seen when the whole is made as small as ``size``."""
    from scipy.ndimage import maximum_filter

    from data.fit import fitted_size

    high, wide = drawn.shape
    h, w = fitted_size(high, wide, size)
    cell = max(-(-high // h), -(-wide // w))
    reach = cell // 2  # 2 * reach + 1 pixels are at least one of the small ones
    return drawn if reach == 0 else maximum_filter(drawn, 2 * reach + 1, mode="constant")


def read_edit(cfg: GenerateCfg, module: Any) -> tuple[Edit | None, dict[str, Any]]:
    """The edit that ``cfg`` asks for, at the size of the model's masks, and what is said of it in files.

    Raises:
        DataError: a file that is no readable image.
        ConfigError: a region to keep that does not fit the mask, or leaves nothing to keep or to draw.
    """
    if not cfg.init_mask:
        return None, {}
    from data.images import read_mask, read_rgb

    path, keep = Path(cfg.init_mask).expanduser(), None
    given = (read_rgb if module.cfg.data.channels == 3 else read_mask)(path)
    about: dict[str, Any] = {"init_mask": file_hash(path), "strength": cfg.strength}
    if cfg.keep:
        box, region = cfg.keep_box, Path(cfg.keep).expanduser()
        keep = read_mask(region) if box is None else filled_box(box, *given.shape[:2])
        about["keep"] = file_hash(region) if box is None else list(box)
    return make_edit(given, keep, cfg.strength, module), about


def make_edit(given: np.ndarray, keep: np.ndarray | None, strength: float, module: Any) -> Edit:
    """An edit from a mask [H,W] of 0/1 or an RGB image [H,W,3] of 0..255, and the mask [H,W] of what to keep of it.

    Both are fitted to the size of the model's masks as its training data was. Raises ConfigError (see ``read_edit``).
    """
    import torch

    from data.datasets import to_tensor
    from data.fit import fit_masks, fit_rgb, masks_to_rgb
    from samplers.generates import Edit

    size, rgb = module.cfg.data.image_size, module.cfg.data.channels == 3
    if rgb and given.ndim == 2:
        given = masks_to_rgb(given[None])[0]
    image = to_tensor((fit_rgb(given, size) if rgb else fit_masks(given[None], size)[0])[None])[0]
    if not rgb and given.any() and not image.any():
        raise ConfigError(f"init_mask has lines thinner than a pixel of the {size} that this model draws, so that "
                          "nothing is left of it: draw them thicker")  # fmt: skip
    if keep is None:
        return Edit(image, strength)
    if keep.shape != given.shape[:2]:
        (h, w), (mask_h, mask_w) = keep.shape, given.shape[:2]
        raise ConfigError(f"keep is {w}x{h} pixels, but the mask that it belongs to is {mask_w}x{mask_h}: "
                          "give both the same size")  # fmt: skip
    kept = fit_masks(keep[None], size)[0].astype(bool)
    if not kept.any():
        raise ConfigError("keep covers no pixel of the mask: leave it out, or name a larger region")
    if kept.all():
        raise ConfigError("keep covers the whole mask, so that there is nothing to draw: name a smaller region")
    return Edit(image, strength, torch.from_numpy(kept))


def filled_box(box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """A mask [height,width] of 0/1, with 1 in the box (left, top, right, bottom); right and bottom are outside of it.

    Raises:
        ConfigError: a box that leaves the mask.
    """
    left, top, right, bottom = box
    if right > width or bottom > height:
        raise ConfigError(f"keep is the box {list(box)}, but the mask has {width}x{height} pixels: stay inside of it")
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask
