"""A user's folder of image files with their captions.

Every image at any depth is taken, unless its folder or one above (inside the root) holds a metadata file; then only
the images that such a file lists are. A caption is looked for in this order: the metadata file, a .txt file of the
same stem, the top-level subfolder's name, the default prompt. A folder written by the generating script reads back
as a training set: its manifest.jsonl is a metadata file, so the grid picture beside the masks is not taken.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs.data_cfg import DataCfg, FolderSource
from data import captions
from data.fit import fit_masks, fit_rgb
from data.images import frames_note, read_picture, shown
from data.masks import DataError, MaskSet

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_SKIPPED = ("thumbs.db", "__macosx")
_NAMED = 5
_BAR_FROM = 500
_PIECE = 4096


def load(source: FolderSource, cfg: DataCfg) -> tuple[MaskSet, MaskSet | None]:
    """The training folder, and the test folder where one is given.

    Raises:
        DataError: missing or empty folder, unusable captions, or more than ``source.max_bad`` of the images unreadable.
    """
    train = load_folder(source.train, "--data.source.train", source, cfg)
    if not source.test.strip():
        return train, None
    return train, load_folder(source.test, "--data.source.test", source, cfg)


def load_folder(folder: str, option: str, source: FolderSource, cfg: DataCfg) -> MaskSet:
    """All usable images of one folder; ``option`` is the setting to name in an error. Raises DataError, as ``load``."""
    found = read_folder(folder, option, source.default_prompt, cfg)
    masks = found.usable(source.max_bad)
    missing = sum(not item.listed.captioned for item in found.fitted)
    if missing:
        warnings.warn(
            f"{missing} of {len(masks)} masks in {shown(folder)} have no caption and get the prompt "
            f"{source.default_prompt!r} (.venv/bin/python -m scripts.caption_masks can say what they show)",
            stacklevel=2,
        )
    return masks


def pieces(source: FolderSource, cfg: DataCfg) -> dict[str, Iterator[MaskSet]]:
    """Everything in a shuffled order, a few thousand masks at a time, for folders that do not fit into memory.

    Raises DataError, as ``load``; for unreadable images once they are too many.
    """

    def of(folder: str, option: str) -> Iterator[MaskSet]:
        root = find_folder(folder, option)
        images, bad_captions, notes = list_images(root, source.default_prompt)
        if not images or bad_captions:
            read_folder(folder, option, source.default_prompt, cfg).usable(source.max_bad)  # raises
        bad = 0
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(images))
        for start in range(0, len(images), _PIECE):
            some = read_listed(root, [images[i] for i in order[start : start + _PIECE]], [], notes, cfg)
            bad, notes = bad + len(some.bad_images), []
            if bad > source.max_bad * len(images):
                raise DataError(
                    f"{bad} of {len(images)} images cannot be used, such as: {some.bad_images[-1]}; that is more than "
                    f"{100 * source.max_bad:g} % (--data.source.max-bad), so check the folder and the file formats"
                )
            if some.fitted:
                yield some.usable(max_bad=1.0)

    found = {"train": of(source.train, "--data.source.train")}
    return found | ({"test": of(source.test, "--data.source.test")} if source.test.strip() else {})


@dataclass(frozen=True)
class Listed:
    """An image file before it is read."""

    path: Path
    prompt: str
    captioned: bool
    """The prompt is its own: from a metadata file, a text file or a subfolder."""


@dataclass(frozen=True)
class Fitted:
    """One file, fitted to the size of the training."""

    listed: Listed
    image: np.ndarray
    """[size,size] of 0/1 or [size,size,3]."""
    height: int
    """Of the file, in pixels."""
    width: int
    area: float
    """Share of the file's pixels that are foreground; nan for an RGB image."""
    grey: float
    """See ``data.images.Picture``."""
    note: str = ""
    """What to warn of."""
    labels: int = 0
    """See ``data.images.Picture``."""

    @property
    def emptied(self) -> bool:
        """Foreground was there before fitting, and is gone."""
        return self.area > 0 and not self.image.any()


@dataclass(frozen=True)
class Reading:
    """A folder: its usable images in the order of their paths, and everything that is wrong with the others."""

    root: Path
    fitted: list[Fitted]
    bad_images: list[DataError]
    bad_captions: list[DataError]
    notes: list[str]
    """What training warns of."""

    @property
    def total(self) -> int:
        return len(self.fitted) + len(self.bad_images)

    @property
    def names(self) -> list[str]:
        return [_name(item, self.root) for item in self.fitted]

    def usable(self, max_bad: float) -> MaskSet:
        """The usable images; warns of each one that is skipped.

        Raises:
            DataError: captions that cannot be used, no usable image, or more than ``max_bad`` of them bad.
        """
        if self.bad_captions:
            more = len(self.bad_captions) - 1
            where = f" ({more} more like this: .venv/bin/python -m scripts.check_data lists them)" if more else ""
            raise DataError(f"{self.bad_captions[0]}{where}")
        bad = [str(error) for error in self.bad_images]
        if len(bad) > max_bad * self.total or not self.fitted:
            limit = f"more than {100 * max_bad:g} % (--data.source.max-bad)" if self.fitted else "all of them"
            raise DataError(
                f"{len(bad)} of {self.total} images cannot be used: {_some(bad)}; that is {limit}, so check the folder "
                f"and the file formats ({_sought()})"
            )
        for note in (*self.notes, *(f"{text} (skipped)" for text in bad)):
            warnings.warn(note, stacklevel=2)
        images = np.stack([item.image for item in self.fitted])
        return MaskSet(images, [item.listed.prompt for item in self.fitted], self.names)


def read_folder(folder: str, option: str, default_prompt: str, cfg: DataCfg, replaced: str = "") -> Reading:
    """Read every image of one folder, fitted to ``cfg.image_size``; for ``replaced``, see ``list_images``.

    Raises:
        DataError: no such folder, or no image in it; what is wrong with single files is told in the answer.
    """
    root = find_folder(folder, option)
    images, bad_captions, notes = list_images(root, default_prompt, replaced)
    if not images and not bad_captions:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            f"the folder {shown(folder)!r} holds no image{why}; put files there ({_sought()}), or name another one "
            f"({option})"
        )
    return read_listed(root, images, bad_captions, notes, cfg)


def find_folder(folder: str, option: str) -> Path:
    """Raises DataError where there is none."""
    root = Path(os.path.abspath(os.path.expanduser(folder)))
    if not os.path.isdir(root):
        found = "is not a folder" if os.path.lexists(root) else "does not exist"
        raise DataError(f"the folder {shown(folder)!r} {found}; put masks ({_sought()}) there, or name another "
                        f"one ({option})")  # fmt: skip
    return root


def read_listed(
    root: Path, images: list[Listed], bad_captions: list[DataError], notes: list[str], cfg: DataCfg
) -> Reading:
    """Read ``images``, fitted to ``cfg.image_size``; what is wrong with single files is told in the answer."""
    read = partial(_read_fitted, size=cfg.image_size, channels=cfg.channels)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(_progress(pool.map(read, images), len(images)))
    fitted = [result for result in results if isinstance(result, Fitted)]
    notes += [f"{shown(item.listed.path)} {item.note}" for item in fitted if item.note]
    emptied = [_name(item, root) for item in fitted if item.emptied]
    if emptied:
        notes.append(
            f"{len(emptied)} masks are empty at {cfg.image_size} pixels, too thin to be seen: {_some(emptied)}; "
            "raise --data.image-size or draw them thicker"
        )
    labelled = [f"{_name(item, root)} ({item.labels} values)" for item in fitted if item.labels]
    if labelled:
        notes.append(
            f"{len(labelled)} files hold several values, none above half of their range: {_some(labelled)}; a mask has "
            "the larger half of them, so if they are labels, one number per object, write each object as a file"
        )
    bad_images = [result for result in results if isinstance(result, DataError)]
    return Reading(root, fitted, bad_images, bad_captions, notes)


def _name(item: Fitted, root: Path) -> str:
    return shown(item.listed.path.relative_to(root).as_posix())


def _sought() -> str:
    return ", ".join(EXTENSIONS)


def list_images(
    root: Path, default_prompt: str, replaced: str = ""
) -> tuple[list[Listed], list[DataError], list[str]]:
    """The images by the rules at the top of this file, ordered by path; what is wrong with captions; and notes.

    ``replaced`` names a metadata file of ``root`` that counts as not there, since it is about to be written anew.
    """
    walked, metadata, linked, notes = _walk(root, replaced)
    captioned: dict[Path, str | None] = {}
    bad: list[DataError] = []
    for path in sorted(metadata, key=lambda path: len(path.parts)):  # the file nearest to an image has the last word
        said, wrong = captions.read_metadata(path, root)
        captioned.update(said)
        bad += wrong
    ruled = {path.parent for path in metadata}
    free = [path for path in walked if path not in captioned and ruled.isdisjoint(path.parents)]
    left = sum(path not in captioned for path in walked) - len(free)
    named = {folder for image in captioned for folder in image.parents} if linked else set()
    if unseen := [shown(path) for path in linked if path not in named]:
        notes.append(f"{len(unseen)} links to folders are not followed: {_some(unseen)}")
    if left:
        notes.append(f"{left} images under {shown(root)} are listed in no metadata file and not used")
    chosen = sorted([*captioned, *free])
    in_root = any(path.parent == root for path in chosen)
    images = []
    for path in chosen:
        own = captioned.get(path)
        try:
            own = captions.sidecar(path) if own is None else own
        except DataError as error:
            bad.append(error)
        own = captions.class_name(path, root, in_root) if own is None else own
        images.append(Listed(path, default_prompt if own is None else own, own is not None))
    return images, bad, notes


def metadata_files(root: Path) -> list[Path]:
    """Those of ``root`` and its subfolders that are read."""
    return _walk(root, "")[1]


def _walk(root: Path, replaced: str) -> tuple[list[Path], list[Path], list[Path], list[str]]:
    """Image files, the metadata file of each folder that has one, links to folders, not followed, and notes."""
    images: list[Path] = []
    metadata: list[Path] = []
    unreadable: list[str] = []
    linked: list[Path] = []
    for where, folders, files in os.walk(root, onerror=lambda error: unreadable.append(shown(error.filename))):
        folders[:] = sorted(name for name in folders if not _is_skipped(name))
        linked += [path for name in folders if (path := Path(where, name)).is_symlink()]
        kept = sorted(name for name in files if not _is_skipped(name))
        images += [Path(where, name) for name in kept if name.lower().endswith(EXTENSIONS)]
        listing = [Path(where, name) for name in captions.METADATA if name in kept]
        metadata += [path for path in listing if path != root / replaced][:1]
    notes = [f"{len(unreadable)} folders cannot be read: {_some(unreadable)}"] if unreadable else []
    return images, metadata, linked, notes


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SKIPPED


def _some(names: list[str]) -> str:
    return "; ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")


def _read_fitted(listed: Listed, size: int, channels: int) -> Fitted | DataError:
    """The fitted image, or what was wrong with the file."""
    try:
        picture = read_picture(listed.path, rgb=channels == 3)
    except DataError as error:
        return error
    pixels = picture.pixels
    image = fit_rgb(pixels, size) if channels == 3 else fit_masks(pixels[None], size)[0]
    area = float("nan") if channels == 3 else float(pixels.mean())
    note = frames_note(picture) if picture.frames > 1 else ""
    return Fitted(listed, image, pixels.shape[0], pixels.shape[1], area, picture.grey, note, picture.labels)


def _progress(results: Iterable[Fitted | DataError], total: int) -> Iterable[Fitted | DataError]:
    """A bar with the time left, for many files on a terminal."""
    return tqdm(results, total=total, desc="reading images", unit="file", disable=True if total < _BAR_FROM else None)
