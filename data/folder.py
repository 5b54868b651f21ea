"""A user's folder of image files with their captions.

Every image at any depth is taken, unless its folder or one above (inside the root) holds a metadata file; then only
the images that such a file lists are. A caption is looked for in this order: the metadata file, a .txt file of the
same stem, the top-level subfolder's name, the default prompt. A folder written by the generating script reads back
as a training set: its manifest.jsonl is a metadata file, so the grid picture beside the masks is not taken.
"""

import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs.data_cfg import DataCfg, FolderSource
from data import captions
from data.fit import fit_masks, fit_rgb
from data.images import read_mask, read_rgb, shown
from data.masks import DataError, MaskSet

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_SKIPPED = ("thumbs.db", "__macosx")
_MOST_BAD = 0.1
_NAMED = 5
_BAR_FROM = 500


def load(source: FolderSource, cfg: DataCfg) -> tuple[MaskSet, MaskSet | None]:
    """The training folder, and the test folder where one is given.

    Raises:
        DataError: missing or empty folder, unusable captions, or more than a tenth of the images unreadable.
    """
    train = load_folder(source.train, "--data.source.train", source.default_prompt, cfg)
    if not source.test.strip():
        return train, None
    return train, load_folder(source.test, "--data.source.test", source.default_prompt, cfg)


def load_folder(folder: str, option: str, default_prompt: str, cfg: DataCfg) -> MaskSet:
    """All images of one folder, fitted to ``cfg.image_size``; ``option`` is the setting to name in an error."""
    root = Path(os.path.abspath(os.path.expanduser(folder)))
    if not root.is_dir():
        found = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"the folder {shown(folder)!r} {found}; put masks ({_sought()}) there or set {option}")
    images = caption_images(root, default_prompt)
    if not images:
        raise DataError(f"the folder {shown(folder)!r} holds no image; put files there ({_sought()}) or set {option}")
    return _load_images(images, root, cfg)


def _sought() -> str:
    return ", ".join(EXTENSIONS)


def caption_images(root: Path, default_prompt: str) -> dict[Path, str]:
    """Image file -> prompt, ordered by path, by the rules at the top of this file."""
    walked, metadata = _walk(root)
    listed: dict[Path, str | None] = {}
    for path in sorted(metadata, key=lambda path: len(path.parts)):  # the file nearest to an image has the last word
        listed.update(captions.read_metadata(path, root))
    ruled = {path.parent for path in metadata}
    free = [path for path in walked if path not in listed and ruled.isdisjoint(path.parents)]
    left = sum(path not in listed for path in walked) - len(free)
    if left:
        warnings.warn(f"{left} images under {shown(root)} are listed in no metadata file and not used", stacklevel=2)
    chosen = sorted([*listed, *free])
    in_root = any(path.parent == root for path in chosen)

    def prompt(path: Path) -> str:
        found = listed.get(path)
        if found is None:
            found = captions.sidecar(path)
        if found is None:
            found = captions.class_name(path, root, in_root)
        return default_prompt if found is None else found

    return {path: prompt(path) for path in chosen}


def _walk(root: Path) -> tuple[list[Path], list[Path]]:
    """Image files, and the metadata file of each folder that has one; links to folders are not followed."""
    images: list[Path] = []
    metadata: list[Path] = []
    unreadable: list[str] = []
    for where, folders, files in os.walk(root, onerror=lambda error: unreadable.append(shown(error.filename))):
        folders[:] = sorted(name for name in folders if not _is_skipped(name))
        kept = sorted(name for name in files if not _is_skipped(name))
        images += [Path(where, name) for name in kept if name.lower().endswith(EXTENSIONS)]
        metadata += [Path(where, name) for name in captions.METADATA if name in kept][:1]
    if unreadable:
        warnings.warn(f"{len(unreadable)} folders cannot be read: {_some(unreadable)}", stacklevel=2)
    return images, metadata


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SKIPPED


def _some(names: list[str]) -> str:
    return "; ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")


def _load_images(prompts: dict[Path, str], root: Path, cfg: DataCfg) -> MaskSet:
    read = partial(_read_fitted, size=cfg.image_size, channels=cfg.channels)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(_progress(pool.map(read, prompts), len(prompts)))
    _report_bad([result for result in results if isinstance(result, DataError)], len(prompts))
    good = [(path, result) for path, result in zip(prompts, results, strict=True) if isinstance(result, _Fitted)]
    emptied = [_name(path, root) for path, result in good if result.emptied]
    if emptied:
        warnings.warn(
            f"{len(emptied)} masks are empty at {cfg.image_size} pixels, too thin to be seen: {_some(emptied)}; "
            "raise --data.image-size or draw them thicker", stacklevel=2,
        )  # fmt: skip
    images = np.stack([result.image for _, result in good])
    return MaskSet(images, [prompts[path] for path, _ in good], [_name(path, root) for path, _ in good])


@dataclass(frozen=True)
class _Fitted:
    image: np.ndarray
    """[size,size] of 0/1 or [size,size,3]."""
    emptied: bool
    """Foreground was there before fitting, and is gone."""


def _read_fitted(path: Path, size: int, channels: int) -> _Fitted | DataError:
    """The fitted image, or what was wrong with the file."""
    try:
        if channels == 3:
            return _Fitted(fit_rgb(read_rgb(path), size), emptied=False)
        mask = read_mask(path)
    except DataError as error:
        return error
    fitted = fit_masks(mask[None], size)[0]
    return _Fitted(fitted, emptied=bool(mask.any() and not fitted.any()))


def _progress(results: Iterable[_Fitted | DataError], total: int) -> Iterable[_Fitted | DataError]:
    """A bar with the time left, for many files on a terminal."""
    return tqdm(results, total=total, desc="reading images", unit="file", disable=True if total < _BAR_FROM else None)


def _report_bad(bad: list[DataError], total: int) -> None:
    if not bad:
        return
    what = f"{len(bad)} of {total} images cannot be used: {_some([str(error) for error in bad])}"
    if len(bad) > _MOST_BAD * total:
        raise DataError(f"{what}; that is more than a tenth, so check the folder and the file formats ({_sought()})")
    warnings.warn(f"{what} (skipped)", stacklevel=2)


def _name(path: Path, root: Path) -> str:
    return shown(path.relative_to(root).as_posix())
