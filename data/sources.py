"""From a config to training and held-out masks: one loader per type of source."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from configs.data_cfg import DataCfg, EmbeddedSource, FolderSource, MnistSource, ShardSource
from data import embedded, folder, mnist, shards
from data.masks import MaskSet
from data.split import split_by_content, without_copies
from data.stream import ShardStream


@dataclass(frozen=True)
class Loader:
    """What one type of source can do."""

    load: Callable[[Any, DataCfg], tuple[MaskSet, MaskSet | None]]
    """(source, cfg) -> all masks and None, or training masks and the source's own test masks."""
    identity: Callable[[Any], str]
    """A short name of the data set, the same on every machine."""
    prepare: Callable[[Any], None] = lambda source: None
    """Work that one process per machine does before the others load."""
    pieces: Callable[[Any, DataCfg], dict[str, Iterator[MaskSet]]] | None = None
    """(source, cfg) -> all masks a part at a time, those of the source's own test set apart; None: ``load`` has all."""
    stream: type[ShardStream] | None = None
    """What training reads in place of ``load``'s training masks, which are then some of many."""


LOADERS: dict[type, Loader] = {
    EmbeddedSource: Loader(embedded.load, lambda source: f"embedded:{source.name}"),
    FolderSource: Loader(
        folder.load, lambda source: f"folder:{PurePath(source.train).as_posix()}", pieces=folder.pieces
    ),
    MnistSource: Loader(mnist.load, lambda source: "mnist", mnist.prepare),
    ShardSource: Loader(
        shards.load, lambda source: f"shards:{source.train.rstrip('/')}", pieces=shards.pieces, stream=ShardStream
    ),
}


def stream_of(cfg: DataCfg) -> type[ShardStream] | None:
    """What training reads where the masks are not all in memory; None where they are."""
    return None if cfg.limit else LOADERS[type(cfg.source)].stream


def all_pieces(cfg: DataCfg) -> dict[str, Iterator[MaskSet]]:
    """Every mask of a source in a shuffled order, in parts that fit into memory: "train", and "test" if it has its own.

    Raises DataError, also while the parts are read.
    """
    loader = LOADERS[type(cfg.source)]
    if loader.pieces is not None:
        return loader.pieces(cfg.source, cfg)
    masks, test = loader.load(cfg.source, cfg)
    shuffled = masks.select(np.random.Generator(np.random.PCG64(0)).permutation(len(masks)))
    return {"train": iter([shuffled])} | ({"test": iter([test])} if test else {})


def load_splits(cfg: DataCfg) -> tuple[MaskSet, MaskSet]:
    """(training, held-out) masks. ``cfg.limit`` thins the training masks only, see ``thinned``.

    Raises:
        DataError: the source cannot be used; the message says what to do.
    """
    masks, own = LOADERS[type(cfg.source)].load(cfg.source, cfg)
    train, test = split(masks, own, cfg.val_fraction)
    if isinstance(cfg.source, ShardSource) and len(train) < cfg.limit and len(masks) >= cfg.source.memory:
        warnings.warn(f"data.limit is {cfg.limit:,}, but data.source.memory is {cfg.source.memory:,}, of which "
                      f"{len(train):,} masks are left to train on: raise it with --data.source.memory", stacklevel=2)
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
