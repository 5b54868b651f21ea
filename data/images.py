"""One image file -> one mask or RGB array, whatever its format; nothing but ``DataError`` is raised.

How a pixel becomes foreground, by kind of file:

- **1 bit, 8 bit, 16 bit, 32 bit, float**: above half of the range (0.5, 127.5, 32767.5, ..., 0.5 for floats); where no
  pixel reaches that half, above half of the largest value, so files of 0/1 or of 12 bits stay what they show.
- **RGB, CMYK and other colours**: the brightest of red, green and blue counts, as an 8-bit value.
- **Alpha** (LA, RGBA, palette with transparency): if alpha varies and the visible pixels share one colour, alpha itself
  is the mask (a black icon on nothing). Otherwise the image is put on black; a constant alpha above 0 is ignored.
- **Palette**: every index but 0 is foreground, whatever its colour: it is a label map. The exception is a picture
  stored with a palette, since programs that reduce colours give the indices no meaning: it is read by its brightness,
  as other colours are. It is told by shades of one colour, other than a plain ramp of greys, of which index 0 is not
  the darkest; by greys from black to white; and by white alone in a palette of greys.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from data.masks import DataError

MAX_PIXELS = 64_000_000
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF")
_ONE_COLOUR = 16  # levels that lossy compression may spread one colour over
_GREY = (0.1, 0.9)
_APART = 32
_SHADE = 4  # levels that a shade of a colour may lie beside it
_TOP = {"b": 1.0, "u1": 255.0, "u2": 65535.0, "u4": 4294967295.0, "i4": 2147483647.0, "f4": 1.0}
_SAMPLES = 339  # the TIFF tag that says how numbers are stored
_UNSIGNED = (1,)
_BAND = 1 << 21  # pixels that are worked on at a time, since some steps need many times what they are stored in


def shown(path: str | os.PathLike[str]) -> str:
    """A path as printable text: no half characters, and nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path))


@dataclass(frozen=True)
class Picture:
    """One file, read."""

    pixels: np.ndarray
    """uint8: a mask [H,W] of 0 and 1, or an RGB image [H,W,3]."""
    grey: float = 0.0
    """Share of a mask's pixels whose value lies between 10 % and 90 % of the way from its darkest to its brightest."""
    frames: int = 1
    """How many the file has; the first is read."""
    labels: int = 0
    """How many values above 0 there are in a file of integers none of which reaches half of its range, if more than
    one: they may be numbers of objects, of which a mask keeps the larger half."""


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """The file as a mask [H,W], uint8 of 0 and 1, by the rules at the top of this file.

    Raises:
        DataError: no such file, not an image, damaged, or more than 64 million pixels.
    """
    return _warned(path, read_picture(path, rgb=False)).pixels


def read_drawing(path: str | os.PathLike[str]) -> np.ndarray:
    """``read_mask`` of a drawing: where that is all 0 or all 1, as of a grey pencil on paper, what is above the middle
    between its darkest and its brightest value is 1, if these are an eighth of white apart.
    """
    mask = read_mask(path)
    if 0 < mask.mean() < 1:
        return mask
    grey = read_picture(path, rgb=True).pixels.max(axis=-1).astype(np.int16)
    low, high = int(grey.min()), int(grey.max())
    return (2 * grey > low + high).astype(np.uint8) if high - low >= _APART else mask


def read_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """The file as an RGB image [H,W,3], uint8; alpha is put on black, deeper files are scaled to 8 bits.

    Raises:
        DataError: as ``read_mask``.
    """
    return _warned(path, read_picture(path, rgb=True)).pixels


def _warned(path: str | os.PathLike[str], picture: Picture) -> Picture:
    if picture.frames > 1:
        warnings.warn(f"{shown(path)} {frames_note(picture)}", stacklevel=3)
    return picture


def frames_note(picture: Picture) -> str:
    return f"has {picture.frames} frames or pages; the first is used"


def read_picture(path: str | os.PathLike[str], rgb: bool) -> Picture:
    """The file as a mask or an RGB image, and what is to be said of it. Raises DataError, as ``read_mask``."""
    if not os.path.isfile(path):  # also keeps pipes and devices from being opened
        raise DataError(f"{shown(path)} is not a file; name an image file that exists")
    return decode_picture(path, shown(path), rgb)


def decode_picture(file: str | os.PathLike[str] | IO[bytes], name: str, rgb: bool) -> Picture:
    """``read_picture`` of an opened file, which errors call ``name``."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            _check_size(image)
            frames = getattr(image, "n_frames", 1)
            ImageOps.exif_transpose(image, in_place=True)
            if rgb:
                return Picture(_rgb(image), frames=frames)
            levels = _levels(image)
            return Picture(_binarise(levels), _grey(levels), frames, _labels(levels))
    except DataError as error:
        raise DataError(f"{name} {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{name} {_too_large()}") from None
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ValueError ...
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise DataError(f"{name} cannot be read as an image ({reason}); replace or remove it") from error


def _too_large(size: str = "") -> str:
    return f"is too large{size}: at most {MAX_PIXELS // 1_000_000} million pixels are read; shrink or remove it"


def _check_size(image: Image.Image) -> None:
    """Refuse by the header alone, before any pixel is decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(_too_large(f" ({image.width}x{image.height})"))


def _has_alpha(image: Image.Image) -> bool:
    keyed = image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info
    return keyed or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")


def _levels(image: Image.Image) -> np.ndarray:
    """[H,W] of bool, integer or float, brighter where there is more foreground."""
    if _has_alpha(image):
        return _alpha_levels(image)
    if image.mode == "P":
        return _palette_levels(image)
    if image.mode == "1" or image.mode == "L" or image.mode[0] in "IF":
        return _numbers(image)
    return _banded(image, lambda band: np.asarray(band.convert("RGB")).max(axis=-1))


def _numbers(image: Image.Image) -> np.ndarray:
    unsigned = image.mode == "I" and getattr(image, "tag_v2", {}).get(_SAMPLES) == _UNSIGNED
    return np.asarray(image).view(np.uint32) if unsigned else np.asarray(image)  # Pillow takes them as signed


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """The image, cut into pieces of its full width."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _banded(image: Image.Image, work: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What ``work`` makes of each piece, joined."""
    return np.concatenate([work(band) for band in _bands(image)])


def _binarise(values: np.ndarray) -> np.ndarray:
    """[H,W] of bool, integer or float -> [H,W] of 0/1, above half of the range or of the largest value."""
    kind = values.dtype.kind + ("" if values.dtype.kind == "b" else str(values.dtype.itemsize))
    if not np.isfinite(values).all():
        raise DataError("holds values that are not finite numbers; write it again as 0 and 255")
    half, largest = _TOP[kind] / 2, float(values.max())
    if values.dtype.kind == "f" and largest > 1:
        half = largest / 2
    return (values > (half if largest > half else max(largest, 0.0) / 2)).astype(np.uint8)


def _grey(levels: np.ndarray) -> float:
    """See ``Picture.grey``; 0 for an image of one value."""
    low, high = float(levels.min()), float(levels.max())
    if levels.dtype == bool or low == high:
        return 0.0
    dark, bright = (low + share * (high - low) for share in _GREY)
    return float(((levels > dark) & (levels < bright)).mean())


def _labels(levels: np.ndarray) -> int:
    """See ``Picture.labels``."""
    top = 255 if levels.dtype.itemsize == 1 else 65535  # 32 bits hold labels, or the 16 bits of some PNG files
    if levels.dtype.kind not in "iu" or levels.max() > top / 2:
        return 0
    values = len(np.unique(levels[levels > 0]))
    return values if values > 1 else 0


def _alpha_levels(image: Image.Image) -> np.ndarray:
    alpha = _banded(image, lambda band: _rgba(band)[..., 3])
    largest = alpha.max()
    if alpha.min() == largest:
        return _banded(image, lambda band: _rgba(band)[..., :3].max(axis=-1)) if largest else np.zeros_like(alpha)
    if _one_visible_colour(image, largest // 2):
        return alpha
    return _banded(image, lambda band: _on_black(_rgba(band)).max(axis=-1))


def _rgba(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGBA"))


def _one_visible_colour(image: Image.Image, hidden: int) -> bool:
    """Whether all pixels of which alpha is above ``hidden`` share a colour, as far as lossy compression lets them."""
    low, high = np.full(3, 255, np.uint8), np.zeros(3, np.uint8)
    for band in _bands(image):
        rgba = _rgba(band)
        visible = rgba[rgba[..., 3] > hidden][:, :3]
        low = np.minimum(low, visible.min(axis=0, initial=255))
        high = np.maximum(high, visible.max(axis=0, initial=0))
    return bool((high - low).max() <= _ONE_COLOUR)


def _on_black(rgba: np.ndarray) -> np.ndarray:
    """[H,W,4] -> [H,W,3], rounded to the nearest 8-bit value."""
    return ((rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255).astype(np.uint8)


def _palette_levels(image: Image.Image) -> np.ndarray:
    indices = np.asarray(image)
    used = np.unique(indices)
    colours = np.zeros((256, 3), np.uint8)
    stored = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    colours[: len(stored)] = stored
    return colours.max(axis=1)[indices] if _is_picture(used, stored) else indices != 0


def _is_picture(used: np.ndarray, stored: np.ndarray) -> bool:
    """Whether the indices [N] that are used stand for nothing but the brightness of their colours, of stored [M,3]."""
    if used[-1] >= len(stored):  # such as 255 for what is to be ignored
        return False
    shown = stored[used].astype(np.int64)
    level = shown.max(axis=1)
    brightest = shown[level.argmax()]
    grey = bool((shown == level[:, None]).all())
    if grey and np.array_equal(level, used):
        return False
    shades = np.abs(shown * brightest.max() - level[:, None] * brightest).max() <= _SHADE * brightest.max()
    if len(used) == 1:
        return bool(used[0] == 0 and grey and level[0] == 255 and (stored == stored[:, :1]).all())
    first_is_lighter = used[0] == 0 and bool((level[0] > level[1:]).any())
    return bool(shades and first_is_lighter) or bool(grey and level.min() == 0 and level.max() == 255)


def _rgb(image: Image.Image) -> np.ndarray:
    if _has_alpha(image):
        return _banded(image, lambda band: _on_black(_rgba(band)))
    if image.mode[0] in "IF":
        values = _numbers(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise DataError("holds values that are not finite numbers; write it again as an 8-bit image")
        top = 1.0 if image.mode == "F" else 65535.0
        grey = np.clip(np.rint(values * (255 / max(top, values.max()))), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.array(image.convert("RGB"))
