"""Versions of a few masks: moved and resized, whole, and captioned anew."""

import numpy as np
import pytest
import torch

from configs.checks import ConfigError
from configs.data_cfg import AugmentCfg, DataCfg, EmbeddedSource, ShardSource
from data.masks import MaskSet
from data.module import MaskDataModule
from data.versions import moved, with_versions
from metrics.components import label
from metrics.geometry import describe
from metrics.planes import SQUARE


def shapes() -> MaskSet:
    images = np.zeros((4, 32, 32), np.uint8)
    images[0, 2:8, 3:9] = 1  # a box in the upper left
    images[1, 4:10, 4:10] = images[1, 20:26, 20:26] = 1
    images[2, :, :] = 1  # fills the frame: it can only shrink
    return MaskSet(images, [own.caption for own in describe(torch.from_numpy(images))], ["a", "b", "c", "d"])


def test_versions_are_whole_and_have_the_captions_of_what_they_show() -> None:
    masks = shapes()
    many = with_versions(masks, 40, 0)
    assert (many.images[:4] == masks.images).all()
    assert many.names == masks.names * 40
    assert many.prompts == [own.caption for own in describe(torch.from_numpy(many.images))]
    pieces = [label(image[None], SQUARE)[1] for image in many.images]
    assert pieces == [1, 2, 1, 0] * 40
    boxes = many.images[::4]
    areas = boxes.sum((1, 2))
    assert areas.min() >= 36 / 1.4**2 - 6
    assert areas.max() <= 36 * 1.4**2 + 6
    assert len(np.unique(areas)) > 3
    assert len({(image.any(1).argmax(), image.any(0).argmax()) for image in boxes}) > 30
    for image in boxes:  # nothing was cut off: it is still a full box
        rows, columns = image.any(1).sum(), image.any(0).sum()
        assert rows == columns
        assert image.sum() == rows * columns


def test_other_prompts_stay_and_the_draws_depend_on_the_seed() -> None:
    masks = MaskSet(shapes().images, ["a cat", "one box", "", "two cats"], list("abcd"))
    many = with_versions(masks, 3, 1)
    assert many.prompts == masks.prompts * 3
    assert (many.images == with_versions(masks, 3, 1).images).all()
    assert (many.images != with_versions(masks, 3, 2).images).any()
    assert with_versions(masks, 1, 0) is masks


def test_lines_of_a_pixel_do_not_break() -> None:
    y, x = np.mgrid[:64, :64]
    ring = np.abs(np.hypot(y - 31.5, x - 31.5) - 20) < 0.7
    comb = (x % 4 == 0) & (y > 8) & (y < 50) | (y == 50) & (x % 64 < 61)
    for thin in (ring.astype(np.uint8), comb.astype(np.uint8)):
        draw = np.random.default_rng(0)
        versions = np.stack([moved(thin, draw) for _ in range(60)])
        assert [label(version[None] > 0, SQUARE)[1] for version in versions] == [label(thin[None] > 0, SQUARE)[1]] * 60
        heights = {int(version.any(1).sum()) for version in versions}
        assert len(heights) > 5  # what does not break is resized


@pytest.mark.parametrize("shape", [(1, 32), (32, 1), (7, 19)])
def test_a_mask_of_any_shape_has_versions(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        version = moved(np.ones(shape, np.uint8), draw)
        assert version.shape == shape
        assert version.any()


def test_a_training_has_the_versions_and_judges_by_the_masks_as_they_are() -> None:
    cfg = DataCfg(EmbeddedSource(), limit=10, augment=AugmentCfg(versions=4))
    module = MaskDataModule(cfg, 0)
    module.setup()
    assert len(module.train_set) == 40
    assert len(module.as_read) == 10
    plain = MaskDataModule(DataCfg(EmbeddedSource(), limit=10), 0)
    plain.setup()
    assert (plain.as_read.images == module.as_read.images).all()
    assert (plain.val_set.images == module.val_set.images).all()


@pytest.mark.parametrize("wrong", [{"channels": 3}, {"source": ShardSource()}])
def test_what_has_no_versions_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="versions"):
        DataCfg(augment=AugmentCfg(versions=2), **wrong)  # type: ignore[arg-type]  # of the right types
    with pytest.raises(ConfigError, match="versions"):
        AugmentCfg(versions=0)
