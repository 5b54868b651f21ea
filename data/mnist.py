"""torchvision's MNIST as masks: pixels above 127, prompts "a zero" ... "a nine"."""

import contextlib
from pathlib import Path

import numpy as np

from configs.data_cfg import DataCfg, MnistSource
from data.fit import fit_masks, masks_to_rgb
from data.images import shown
from data.masks import DataError, MaskSet

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_THRESHOLD = 127


def prepare(source: MnistSource) -> None:
    """Download the files when they are missing and ``source.download`` allows it; processes take turns."""
    if not source.download:
        return
    root = Path(source.root).expanduser()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # Windows, a file system without locks, a folder to read only
            import fcntl

            root.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((root / ".download.lock").open("w"))
            fcntl.lockf(file, fcntl.LOCK_EX)  # under torchrun, every process comes here
        _read(source, train=True)


def load(source: MnistSource, cfg: DataCfg) -> tuple[MaskSet, MaskSet]:
    """MNIST's own training and test images, padded (not rescaled) where ``cfg.image_size`` is at least 28.

    Raises:
        DataError: the files are missing, damaged, or cannot be downloaded.
    """
    return _masks(source, cfg, train=True), _masks(source, cfg, train=False)


def _masks(source: MnistSource, cfg: DataCfg, train: bool) -> MaskSet:
    pixels, labels = _read(source, train)
    fitted = fit_masks((pixels > _THRESHOLD).astype(np.uint8), cfg.image_size, enlarge=False)
    names = [f"mnist/{'train' if train else 'test'}/{i}" for i in range(len(fitted))]
    prompts = [f"a {DIGITS[label]}" for label in labels]
    return MaskSet(masks_to_rgb(fitted) if cfg.channels == 3 else fitted, prompts, names)


def _read(source: MnistSource, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N,28,28] and labels [N]."""
    from torchvision.datasets import MNIST

    try:
        stored = MNIST(str(Path(source.root).expanduser()), train=train, download=source.download)
    except Exception as error:  # RuntimeError when missing, URLError offline, ValueError when damaged ...
        where = shown(Path(source.root) / "MNIST" / "raw")
        remedy = "check the network connection or copy the files there" if source.download else (
            "download them with --data.source.download True, or name their folder with --data.source.root"
        )  # fmt: skip
        raise DataError(f"MNIST's files cannot be read from {where} ({error}); {remedy}") from error
    return stored.data.numpy(), stored.targets.numpy()
