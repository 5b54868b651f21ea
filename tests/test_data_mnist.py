"""MNIST from torchvision's files, here a few handmade ones."""

import fcntl
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.data_cfg import DataCfg, MnistSource
from data.masks import DataError
from data.sources import load_splits, prepare

ROOT = Path(__file__).parents[1]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def _write(root: Path, pixels: np.ndarray, labels: np.ndarray, part: str) -> None:
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">4I", 0x803, len(pixels), 28, 28)
    (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(labels)) + labels.tobytes())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (14, 28, 28), dtype=np.uint8)
    pixels[0, 0, :2] = 127, 128
    _write(tmp_path, pixels[:10], np.arange(10, dtype=np.uint8), "train")
    _write(tmp_path, pixels[10:], np.arange(4, dtype=np.uint8), "t10k")
    return tmp_path


def test_digits_are_thresholded_and_padded_without_rescaling(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (14, 28, 28), dtype=np.uint8)
    pixels[0, 0, :2] = 127, 128
    train, test = load_splits(DataCfg(source=MnistSource(str(root)), image_size=32))
    np.testing.assert_array_equal(train.images, np.pad(pixels[:10] > 127, ((0, 0), (2, 2), (2, 2))).astype(np.uint8))
    np.testing.assert_array_equal(test.images, np.pad(pixels[10:] > 127, ((0, 0), (2, 2), (2, 2))).astype(np.uint8))
    assert train.prompts == [f"a {digit}" for digit in DIGITS]
    assert test.prompts == ["a zero", "a one", "a two", "a three"]


def test_digits_are_reduced_when_they_do_not_fit(root: Path) -> None:
    train, _ = load_splits(DataCfg(source=MnistSource(str(root)), image_size=14))
    full, _ = load_splits(DataCfg(source=MnistSource(str(root)), image_size=28))
    means = full.images.reshape(10, 14, 2, 14, 2).mean(axis=(2, 4))
    np.testing.assert_array_equal(train.images, means >= 0.5)


def test_processes_that_may_download_take_turns(root: Path) -> None:
    prepare(DataCfg(MnistSource(str(root), download=True)))  # everything is there: nothing is asked of a server
    held = (root / ".download.lock").open("w")
    fcntl.lockf(held, fcntl.LOCK_EX)
    code = (
        "import torchvision.datasets; from data.mnist import *; print('begins', flush=True)\n"
        f"prepare(MnistSource({str(root)!r}, download=True)); print('done')"
    )
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "begins\n"
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(2)
    held.close()
    assert other.communicate(timeout=120)[0] == "done\n"


def test_missing_files_say_where_they_were_sought_and_how_to_get_them(tmp_path: Path) -> None:
    cfg = DataCfg(source=MnistSource(str(tmp_path / "here")))
    with pytest.raises(DataError, match=r"here/MNIST/raw .*--data\.source\.download True"):
        load_splits(cfg)
    prepare(cfg)  # without download there is nothing to prepare


def test_a_damaged_file_is_a_data_error(root: Path) -> None:
    (root / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"junk")
    with pytest.raises(DataError, match="MNIST"):
        load_splits(DataCfg(source=MnistSource(str(root))))
