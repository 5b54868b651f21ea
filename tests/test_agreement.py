"""What the processes of a training must have found alike before it begins."""

from dataclasses import replace

import pytest
import torch

from models.agreement import DisagreementError, require_agreement, weights_digest
from tests.data_fixtures import random_masks

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
