"""From a config to training and held-out masks: one loader per type of source."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from configs.data_cfg import DataCfg, EmbeddedSource, FolderSource, MnistSource
from data import embedded, folder, mnist
from data.masks import MaskSet
from data.split import split_by_content, without_copies


@dataclass(frozen=True)
class Loader:
    """What one type of source can do."""

    load: Callable[[Any, DataCfg], tuple[MaskSet, MaskSet | None]]
    """(source, cfg) -> all masks and None, or training masks and the source's own test masks."""
    identity: Callable[[Any], str]
    """A short name of the data set, the same on every machine."""
    prepare: Callable[[Any], None] = lambda source: None
    """Work that one process per machine does before the others load."""


LOADERS: dict[type, Loader] = {
    EmbeddedSource: Loader(embedded.load, lambda source: f"embedded:{source.name}"),
    FolderSource: Loader(folder.load, lambda source: f"folder:{PurePath(source.train).as_posix()}"),
    MnistSource: Loader(mnist.load, lambda source: "mnist", mnist.prepare),
}


def load_splits(cfg: DataCfg) -> tuple[MaskSet, MaskSet]:
    """(training, held-out) masks. ``cfg.limit`` thins the training masks only, see ``thinned``.

    Raises:
        DataError: the source cannot be used; the message says what to do.
    """
    train, test = split(*LOADERS[type(cfg.source)].load(cfg.source, cfg), cfg.val_fraction)
    return thinned(train, cfg.limit), test


def split(masks: MaskSet, test: MaskSet | None, val_fraction: float) -> tuple[MaskSet, MaskSet]:
    """(training, held-out): without a test set of its own, a share of ``masks`` is held out. Raises DataError."""
    if test is None:
        return split_by_content(masks, val_fraction)
    return without_copies(masks, test), test


def thinned(masks: MaskSet, limit: int) -> MaskSet:
    """``limit`` masks (0: all) spread over the set: the first of one fixed shuffle, which no seed changes, in order."""
    if not 0 < limit < len(masks):
        return masks
    shuffled = np.random.Generator(np.random.PCG64(0)).permutation(len(masks))
    return masks.select(np.sort(shuffled[:limit]))


def data_fingerprint(cfg: DataCfg) -> str:
    """Short identity of the data set, such as "embedded:animals32 32px 1ch": equal in stages that fit together."""
    return f"{LOADERS[type(cfg.source)].identity(cfg.source)} {cfg.image_size}px {cfg.channels}ch"


def prepare(cfg: DataCfg) -> None:
    """Download what the source needs and may download."""
    LOADERS[type(cfg.source)].prepare(cfg.source)
