"""The two data sets that ship beside this file (licences in NOTICE.md)."""

from pathlib import Path

import numpy as np

from configs.data_cfg import DataCfg, EmbeddedSource
from data.fit import fit_masks, masks_to_rgb
from data.masks import DataError, MaskSet


def load(source: EmbeddedSource, cfg: DataCfg) -> tuple[MaskSet, None]:
    """animals32 with prompts "a giraffe", "an elephant" ..., or icons64 with the caption of each icon.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = Path(__file__).parent / f"{source.name}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            masks = np.unpackbits(stored["bits"], axis=2)
            if "captions" in stored:
                prompts = [str(caption) for caption in stored["captions"]]
            else:
                words = [with_article(str(name)) for name in stored["names"]]
                prompts = [words[label] for label in stored["labels"]]
    except Exception as error:  # a damaged archive raises OSError, KeyError, ValueError, BadZipFile ...
        raise DataError(f"data/{path.name} is missing or damaged ({error}); restore it from the repository") from error
    fitted = fit_masks(masks, cfg.image_size)
    names = [f"{source.name}/{i}" for i in range(len(fitted))]
    return MaskSet(masks_to_rgb(fitted) if cfg.channels == 3 else fitted, prompts, names), None


def with_article(noun: str) -> str:
    """ "giraffe" -> "a giraffe", "elephant" -> "an elephant"."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
