"""The two data sets that ship beside this file (licences in NOTICE.md), and the pictures that are made of one."""

from pathlib import Path

import numpy as np

from configs.data_cfg import DataCfg, EmbeddedSource
from data.fit import fit_masks, masks_to_rgb
from data.masks import DataError, MaskSet
from data.split import split_by_content

COLLAGES = (20_000, 2_000)
"""Pictures of collages64 to train on, of training icons, and held-out ones, of held-out icons."""


def load(source: EmbeddedSource, cfg: DataCfg) -> tuple[MaskSet, MaskSet | None]:
    """animals32 with prompts "a giraffe", "an elephant" ..., icons64 with the caption of each icon, or collages64.

    Raises:
        DataError: the file is missing or damaged.
    """
    if source.name != "collages64":
        return _as_asked(stored(source.name), cfg), None
    from data.collages import collages  # with the metrics, which take a second to import

    icons = split_by_content(stored("icons64"), cfg.val_fraction)
    fitted = (fit_masks(own.images, cfg.image_size) for own in icons)  # before there are captions of them
    train, test = (collages(own, number, 0) for own, number in zip(fitted, COLLAGES, strict=True))
    return _as_asked(train, cfg), _as_asked(test, cfg)


def stored(name: str) -> MaskSet:
    """All masks of a file in this folder, as they are stored. Raises DataError."""
    path = Path(__file__).parent / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            masks = np.unpackbits(file["bits"], axis=2)
            if "captions" in file:
                prompts = [str(caption) for caption in file["captions"]]
            else:
                words = [with_article(str(name)) for name in file["names"]]
                prompts = [words[label] for label in file["labels"]]
    except Exception as error:  # a damaged archive raises OSError, KeyError, ValueError, BadZipFile ...
        raise DataError(f"data/{path.name} is missing or damaged ({error}); restore it from the repository") from error
    return MaskSet(masks, prompts, [f"{name}/{i}" for i in range(len(masks))])


def _as_asked(masks: MaskSet, cfg: DataCfg) -> MaskSet:
    fitted = fit_masks(masks.images, cfg.image_size)
    return MaskSet(masks_to_rgb(fitted) if cfg.channels == 3 else fitted, masks.prompts, masks.names)


def with_article(noun: str) -> str:
    """ "giraffe" -> "a giraffe", "elephant" -> "an elephant"."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
