"""What the processes of a training must have found alike before it begins."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY_DATA, TINY_TRAIN

from data.module import MaskDataModule
from diffusion import DiffusionModule
from models.agreement import DisagreementError, require_agreement, weights_digest
from models.resume import Resume
from models.steps import WholeStepTimer
from models.stopping import GracefulStop
from tests.data_fixtures import random_masks
from trainer import build_trainer, facts

WEIGHTS = {"a": torch.arange(3.0), "b": torch.tensor(1.0)}


def test_a_digest_of_weights_tells_names_shapes_and_values_apart() -> None:
    others = [
        WEIGHTS | {"a": torch.arange(3.0) + 1e-6}, {"a": WEIGHTS["a"], "c": WEIGHTS["b"]},
        WEIGHTS | {"a": torch.arange(3.0)[None]}, WEIGHTS | {"a": torch.arange(3)}, {"a": WEIGHTS["a"]},
    ]
    digests = {weights_digest(own) for own in (WEIGHTS, *others)}
    assert len(digests) == 1 + len(others)
    assert weights_digest(dict(reversed(WEIGHTS.items()))) == weights_digest(WEIGHTS)


def test_a_digest_of_masks_tells_a_missing_file_and_another_caption_apart() -> None:
    masks = random_masks(4)
    without = masks.select([0, 1, 3])
    other = replace(masks, prompts=[*masks.prompts[:3], "another"])
    odd = replace(masks, names=["\udcff", "\ud800", "c", "d"])  # not UTF-8
    assert len({own.digest for own in (masks, without, other, odd)}) == 4
    assert masks.select(range(4)).digest == masks.digest


def test_processes_that_found_different_things_are_told_which() -> None:
    same = {"the masks to train on": "ab", "the autoencoder": "cd"}
    require_agreement([same])
    require_agreement([same, dict(same), dict(same)])
    with pytest.raises(DisagreementError, match="on the autoencoder: process 0 found cd, process 2 ef"):
        require_agreement([same, same, same | {"the autoencoder": "ef"}])


def test_processes_compare_what_they_found_before_a_network_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, trainer = GracefulStop(tmp_path), SimpleNamespace(world_size=2, strategy=SimpleNamespace())
    stop.facts = {"the autoencoder": "ab"}

    def gather(everywhere: list[Any], own: dict[str, object], group: object) -> None:
        everywhere[:] = [own, other]

    monkeypatch.setattr("torch.distributed.new_group", lambda backend, timeout: "group")
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    other: dict[str, object] = {"the autoencoder": "ab"}
    stop.setup(trainer, None, "fit")  # type: ignore[arg-type]  # what it looks at of a trainer
    other = {"the autoencoder": "cd"}
    with pytest.raises(DisagreementError, match="process 0 found ab, process 1 cd"):
        stop.setup(trainer, None, "fit")  # type: ignore[arg-type]  # as above


def test_the_facts_of_a_training_are_its_masks_its_autoencoder_and_where_it_goes_on(
    tiny_diffusion: DiffusionModule,
) -> None:
    data = MaskDataModule(TINY_DATA, 0)
    data.setup("fit")
    found = facts(tiny_diffusion, data, None)
    assert facts(tiny_diffusion, data, None) == found

    def differ(other: dict[str, object]) -> list[str]:
        return [thing for thing in found if other[thing] != found[thing]]

    assert differ(facts(tiny_diffusion, data, Resume(Path("x"), {"global_step": 7}, []))) == ["the step to resume from"]
    fewer = MaskDataModule(replace(TINY_DATA, limit=15), 0)
    fewer.setup("fit")
    assert differ(facts(tiny_diffusion, fewer, None)) == ["the masks to train on"]
    data.val_set = data.val_set.select(range(5))
    assert differ(facts(tiny_diffusion, data, None)) == ["the held-out masks"]
    again = deepcopy(tiny_diffusion)
    with torch.no_grad():
        next(again.autoencoder.parameters()).mul_(1.001)
    assert "the autoencoder" in differ(facts(again, data, None))
    begun = deepcopy(tiny_diffusion)
    begun.cfg = replace(begun.cfg, init="m.ckpt")
    found = facts(begun, data, None)
    with torch.no_grad():
        next(begun.net.parameters()).mul_(1.001)
    assert differ(facts(begun, data, None)) == ["the model of init"]


def test_a_training_has_the_time_limit_that_ends_it_only_after_an_update(tmp_path: Path) -> None:
    for minutes, limits in ((0.0, 0), (1.0, 1)):
        trainer = build_trainer(replace(TINY_TRAIN, max_minutes=minutes), tmp_path, "val/loss", "min", 1.0, [])
        found: list[object] = trainer.callbacks  # type: ignore[attr-defined]  # set without being declared
        assert sum(isinstance(callback, WholeStepTimer) for callback in found) == limits
