"""The split is a function of each mask's content alone."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.data_cfg import DataCfg, EmbeddedSource, FolderSource
from data.masks import DataError, MaskSet
from data.sources import LOADERS, data_fingerprint, load_splits, thinned
from data.split import canonical_hashes, split_by_content, without_copies
from tests.data_fixtures import LETTER, random_masks, write_mask, write_masks


def _turned(mask: np.ndarray) -> list[np.ndarray]:
    """The 8 flips and rotations."""
    return [np.rot90(side, k) for side in (mask, np.fliplr(mask)) for k in range(4)]


def _side(masks: MaskSet, val_fraction: float) -> dict[str, bool]:
    """Name -> held out?"""
    train, val = split_by_content(masks, val_fraction)
    assert sorted(train.names + val.names) == sorted(masks.names)
    return dict.fromkeys(train.names, False) | dict.fromkeys(val.names, True)


def _alike(images: list[np.ndarray]) -> MaskSet:
    return MaskSet(np.stack(images), [""] * len(images), [str(i) for i in range(len(images))])


def test_the_letter_has_eight_different_flips_and_rotations() -> None:
    assert len({form.tobytes() for form in _turned(LETTER)}) == 8


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), *[st.integers(1, 6)] * 2, st.integers(0, 7), st.tuples(*[st.integers(0, 6)] * 2))
def test_turns_and_shifts_do_not_change_the_hash(seed: int, h: int, w: int, turn: int, shift: tuple[int, int]) -> None:
    (dy, dx), shape = shift, np.random.default_rng(seed).integers(0, 2, (h, w), dtype=np.uint8)
    canvas, moved = np.zeros((2, 12, 12), np.uint8)
    canvas[:h, :w] = shape
    turned = _turned(shape)[turn]
    moved[dy : dy + turned.shape[0], dx : dx + turned.shape[1]] = turned
    one, two = canonical_hashes(np.stack([canvas, moved]))
    assert one == two


def test_the_hash_is_sha256_of_the_smallest_of_the_cropped_forms() -> None:
    cropped = LETTER[1:5, 1:5]
    smallest = min(form.tobytes() for form in _turned(cropped))
    assert canonical_hashes(LETTER[None]) == [hashlib.sha256(b"4x4:" + smallest).digest()]
    bar = np.zeros((1, 6, 6), np.uint8)
    bar[0, 1:5, 2] = 1
    assert canonical_hashes(bar) == [hashlib.sha256(b"1x4:\1\1\1\1").digest()]


def test_masks_that_differ_otherwise_have_different_hashes() -> None:
    singles = np.eye(9, dtype=np.uint8).reshape(9, 3, 3)
    bars = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.uint8).reshape(5, 2, 2)
    assert len(set(canonical_hashes(singles))) == 1
    assert len(set(canonical_hashes(bars))) == 5


@pytest.mark.parametrize("val_fraction", [0.1, 0.5])
def test_turned_and_shifted_copies_land_on_the_side_of_their_original(val_fraction: float) -> None:
    originals = [np.pad(mask, 2) for mask in random_masks(60, size=6).images]
    copies = [np.roll(form, (1, -2), (0, 1)) for mask in originals for form in _turned(mask)]
    side = _side(_alike(originals + copies), val_fraction)
    for i in range(60):
        assert {side[str(60 + 8 * i + k)] for k in range(8)} == {side[str(i)]}
    assert len(set(side.values())) == 2


def test_the_order_and_the_other_masks_do_not_matter() -> None:
    masks = random_masks(80)
    side = _side(masks, 0.3)
    order = np.random.default_rng(1).permutation(80)
    assert _side(masks.select(order), 0.3) == side
    half = masks.select(order[:40])
    assert _side(half, 0.3) == {name: side[name] for name in half.names}


def test_a_larger_share_holds_out_the_same_masks_and_more() -> None:
    masks = random_masks(200)
    shares = (0.1, 0.2, 0.6)
    held = [{name for name, out in _side(masks, share).items() if out} for share in shares]
    assert held[0] < held[1] < held[2]
    for names, share in zip(held, shares, strict=True):
        assert abs(len(names) / 200 - share) < 0.1


@pytest.mark.parametrize("name", ["animals32", "icons64"])
def test_no_mask_of_the_embedded_sets_is_in_both_splits(name: Literal["animals32", "icons64"]) -> None:
    cfg = DataCfg(source=EmbeddedSource(name), image_size=int(name[-2:]))
    everything, _ = LOADERS[EmbeddedSource].load(cfg.source, cfg)
    train, val = load_splits(cfg)
    assert len(everything) == {"animals32": 8716, "icons64": 28046}[name]
    assert not set(canonical_hashes(train.images)) & set(canonical_hashes(val.images))
    assert sorted(train.names + val.names) == sorted(everything.names)
    assert 0.09 < len(val) / len(everything) < 0.11
    prompt_of = dict(zip(everything.names, everything.prompts, strict=True))
    assert train.prompts == [prompt_of[name] for name in train.names]


def test_animals_have_the_right_article_and_icons_their_captions() -> None:
    words = ["bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra"]
    cfg = DataCfg()
    animals, _ = LOADERS[EmbeddedSource].load(cfg.source, cfg)
    assert sorted(set(animals.prompts)) == sorted(f"{'an' if word == 'elephant' else 'a'} {word}" for word in words)
    rgb, _ = LOADERS[EmbeddedSource].load(cfg.source, replace(cfg, channels=3))
    np.testing.assert_array_equal(rgb.images, np.repeat(animals.images[..., None] * np.uint8(255), 3, axis=-1))
    large, _ = LOADERS[EmbeddedSource].load(cfg.source, replace(cfg, image_size=64))
    np.testing.assert_array_equal(large.images[:50], np.kron(animals.images[:50], np.ones((1, 2, 2), np.uint8)))


@pytest.mark.parametrize("val_fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("n", [2, 3])
def test_a_tiny_set_has_masks_on_both_sides(n: int, val_fraction: float) -> None:
    masks = random_masks(n)
    hashes = canonical_hashes(masks.images)
    train, val = split_by_content(masks, val_fraction)
    assert len(train) >= 1
    assert len(val) >= 1
    assert min(hashes) in canonical_hashes(val.images)
    assert max(hashes) in canonical_hashes(train.images)


def test_one_mask_and_its_copies_are_not_enough() -> None:
    with pytest.raises(DataError, match="8 masks but only 1 "):
        split_by_content(_alike(_turned(LETTER)), 0.1)


def test_rgb_images_are_told_apart_up_to_flips() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    flipped = canonical_hashes(images[:, :, ::-1])
    assert canonical_hashes(images) == flipped == canonical_hashes(images[:, ::-1])
    assert len(set(flipped)) == 4


def test_training_masks_that_are_copies_of_test_masks_are_left_out(tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "train", 6)
    write_mask(tmp_path / "test/t.png", np.rot90(masks[2]))
    cfg = DataCfg(source=FolderSource(str(tmp_path / "train"), str(tmp_path / "test")), image_size=8)
    with pytest.warns(UserWarning, match="1 training masks are copies of test masks"):
        train, test = load_splits(cfg)
    assert train.names == ["00.png", "01.png", "03.png", "04.png", "05.png"]
    np.testing.assert_array_equal(test.images, np.rot90(masks[2])[None])
    with pytest.raises(DataError, match="all 6 training masks are also in the test set"):
        without_copies(_alike(list(masks)), _alike(list(masks)))


def test_a_limit_takes_masks_from_the_whole_set_and_leaves_the_held_out_ones() -> None:
    train, val = load_splits(DataCfg())
    few, same_val = load_splits(DataCfg(limit=300))
    assert len(few) == 300
    assert set(few.names) < set(train.names)
    assert len(set(few.prompts)) == 10
    assert few.names == sorted(few.names, key=train.names.index)
    assert same_val.names == val.names
    assert set(thinned(train, 200).names) < set(few.names)
    assert thinned(train, len(train) + 1) is train


def test_the_fingerprint_names_source_size_and_channels() -> None:
    assert data_fingerprint(DataCfg()) == "embedded:animals32 32px 1ch"
    folder = DataCfg(source=FolderSource("./my/masks/"), image_size=64, channels=3)
    assert data_fingerprint(folder) == "folder:my/masks 64px 3ch"
    assert data_fingerprint(DataCfg(batch_size=2, limit=9)) == data_fingerprint(DataCfg())
