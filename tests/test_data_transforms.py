"""Augmented masks are masks, and depend on (seed, epoch, index) alone."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from configs.data_cfg import AugmentCfg
from data.datasets import ImageDataset
from data.masks import MaskSet
from data.transforms import build_augmentation
from tests.data_fixtures import LETTER

BLOB = np.kron(np.pad(LETTER, 1), np.ones((4, 4), np.uint8))
EACH = {
    "hflip": AugmentCfg(hflip=1),
    "vflip": AugmentCfg(vflip=1),
    "rot90": AugmentCfg(rot90=1),
    "affine": AugmentCfg(affine=1),
    "elastic": AugmentCfg(elastic=1),
    "all": AugmentCfg(hflip=0.5, vflip=0.5, rot90=0.5, affine=1, shift=0.2, scale=0.3, rotate=45, elastic=1),
}


@pytest.mark.parametrize("name", EACH)
def test_a_mask_stays_a_mask_of_its_size_under_every_transform(name: str) -> None:
    change = build_augmentation(EACH[name], 32)
    assert change is not None
    before = BLOB.copy()
    results = [change(BLOB, seed) for seed in range(40)]
    for result in results:
        assert result.shape == BLOB.shape
        assert result.dtype == np.uint8
        assert set(np.unique(result)) == {0, 1}
    assert any(not np.array_equal(result, BLOB) for result in results)
    np.testing.assert_array_equal(BLOB, before)


@pytest.mark.parametrize("name", EACH)
def test_the_seed_decides_the_change(name: str) -> None:
    one, two = build_augmentation(EACH[name], 32), build_augmentation(EACH[name], 32)
    assert one is not None
    assert two is not None
    first = [one(BLOB, seed) for seed in range(10)]
    np.random.seed(123)
    again = [two(BLOB, seed) for seed in reversed(range(10))][::-1]
    np.testing.assert_array_equal(np.stack(first), np.stack(again))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one))(BLOB, 7), first[7])


def test_certain_flips_are_exact_and_quarter_turns_are_all_taken() -> None:
    hflip, vflip, rot90 = (build_augmentation(EACH[name]) for name in ("hflip", "vflip", "rot90"))
    assert hflip is not None
    assert vflip is not None
    assert rot90 is not None
    np.testing.assert_array_equal(hflip(BLOB, 3), BLOB[:, ::-1])
    np.testing.assert_array_equal(vflip(BLOB, 3), BLOB[::-1])
    assert {rot90(BLOB, seed).tobytes() for seed in range(40)} == {np.rot90(BLOB, k).tobytes() for k in range(4)}


def measured(cfg: AugmentCfg) -> np.ndarray:
    """Of 200 changed squares of 20x20 in 64x64: shift down and right, in pixels, area as a share of the square's,
    and the share of the square that is covered still: [200,4].
    """
    change = build_augmentation(cfg, 64)
    assert change is not None
    square = np.zeros((64, 64), np.uint8)
    square[22:42, 22:42] = 1
    found = []
    for seed in range(200):
        result = change(square, seed)
        found.append((*(np.argwhere(result).mean(0) - 31.5), result.sum() / 400, (result & square).sum() / 400))
    return np.array(found)


def test_shift_scale_and_rotation_are_as_large_as_they_are_set() -> None:
    still = AugmentCfg(affine=1, shift=0, scale=0, rotate=0)
    assert (measured(still) == (0, 0, 1, 1)).all()
    shifted = measured(replace(still, shift=0.2))
    assert 0.9 * 12.8 < np.abs(shifted[:, :2]).max() < 12.8 + 1
    np.testing.assert_array_equal(shifted[:, 2], 1)
    scaled = measured(replace(still, scale=0.3))
    assert 0.7**2 - 0.03 < scaled[:, 2].min() < 0.75**2
    assert 1.25**2 < scaled[:, 2].max() < 1.3**2 + 0.06
    assert np.abs(scaled[:, :2]).max() < 1
    turned = measured(replace(still, rotate=45))
    assert turned[:, 3].min() == pytest.approx(2 * 2**0.5 - 2, abs=0.05)  # a square and the same turned by 45 degrees
    assert turned[:, 3].max() > 0.97
    assert np.abs(turned[:, 2] - 1).max() < 0.1


def test_elastic_moves_edges_by_a_few_percent_at_every_size() -> None:
    for size in (32, 64, 128):
        change = build_augmentation(EACH["elastic"], size)
        assert change is not None
        half = np.zeros((size, size), np.uint8)
        half[:, : size // 2] = 1
        changed = np.mean([(change(half, seed) != half).mean() for seed in range(20)])
        assert 0.005 < changed < 0.1


def test_rgb_images_are_changed_too() -> None:
    change = build_augmentation(EACH["all"], 32)
    assert change is not None
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    result = change(rgb, 1)
    assert result.shape == (32, 32, 3)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, change(rgb, 1))


def test_no_augmentation_is_none() -> None:
    assert build_augmentation(AugmentCfg()) is None


def _blobs(n: int) -> MaskSet:
    return MaskSet(np.repeat(BLOB[None], n, axis=0), [""] * n, [str(i) for i in range(n)])


@pytest.mark.parametrize("augment", [AugmentCfg(hflip=0.5), EACH["all"]], ids=["hflip", "all"])
def test_a_draw_depends_on_seed_epoch_and_index_alone(augment: AugmentCfg) -> None:
    keys = [(epoch, index) for epoch in range(3) for index in range(30)]
    whole = ImageDataset(_blobs(30), augment, seed=5).__getitems__(keys)["image"]
    one_by_one = [ImageDataset(_blobs(30), augment, seed=5)[key]["image"][0] for key in keys[::7]]
    for image, expected in zip(one_by_one, whole[::7], strict=True):
        assert image.equal(expected)
    other_seed = ImageDataset(_blobs(30), augment, seed=6).__getitems__(keys)["image"]
    by_epoch = whole.unflatten(0, (3, 30))
    assert not other_seed.equal(whole)
    assert not by_epoch[0].equal(by_epoch[1])
    assert any(not by_epoch[0][0].equal(image) for image in by_epoch[0])


def test_importing_the_data_package_asks_no_network_and_waits_for_albumentations() -> None:
    code = """
import socket, sys
def refuse(*_, **__): raise SystemExit("network")
socket.getaddrinfo = socket.create_connection = refuse
import data.datasets, data.sources
assert not {"albumentations", "torchvision", "lightning"} & set(sys.modules)
from configs.data_cfg import AugmentCfg
from data.transforms import build_augmentation
build_augmentation(AugmentCfg(affine=1))
assert "albumentations" in sys.modules
"""
    clean = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
