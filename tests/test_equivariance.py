"""Changes of EQ-VAE: the same for latents and images, and what training does with them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TINY_1
from torch import Tensor

import autoencoder
from autoencoder import AutoencoderModule
from models.equivariance import Change, random_change


def test_a_quarter_turn_of_a_latent_is_that_of_its_image() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    latent = torch.nn.functional.avg_pool2d(x, 2)
    for turns in range(4):
        change = Change(turns, 4)
        assert torch.equal(torch.nn.functional.avg_pool2d(change(x, 2), 2), change(latent))
    assert torch.equal(Change(1, 4)(latent), latent.rot90(1, (2, 3)))


def test_shrinking_to_half_averages_and_keeps_a_flat_image() -> None:
    flat = torch.full((2, 3, 8, 8), 0.7)
    torch.testing.assert_close(Change(0, 3)(flat), torch.full((2, 3, 3, 3), 0.7))
    assert Change(2, 3)(flat, 2).shape == (2, 3, 6, 6)


def test_random_changes_are_all_turns_and_sizes_alike_but_never_none() -> None:
    torch.manual_seed(0)
    found = [random_change(8) for _ in range(4000)]
    kinds = {(change.turns, change.side) for change in found}
    assert kinds == {(turns, side) for turns in range(4) for side in range(2, 9)} - {(0, 8)}
    counts = torch.tensor([sum((c.turns, c.side) == kind for c in found) for kind in kinds]).float()
    assert ((counts - 4000 / 27).abs() < 5 * (4000 / 27) ** 0.5).all()
    assert {random_change(1).turns for _ in range(50)} == {1, 2, 3}


def test_training_compares_with_the_changed_image_and_validation_does_not() -> None:
    cfg = replace(TINY_1, autoencoder=replace(TINY_1.autoencoder, equivariance=1.0))
    module = AutoencoderModule(cfg)
    seen: list[tuple[int, ...]] = []
    module.vae.decoder.register_forward_hook(lambda net, args, out: seen.append(tuple(args[0].shape)))
    x = torch.rand(2, 1, 32, 32)

    def sizes(training: bool) -> set[int]:
        seen.clear()
        for seed in range(8):
            torch.manual_seed(seed)
            loss, _, logits, _ = module.train(training).losses(module.vae, x)
            assert isinstance(loss, Tensor)
            assert loss.isfinite()
            assert logits.shape[-1] == 4 * seen[-1][-1]
        return {shape[-1] for shape in seen}

    assert len(sizes(True)) > 2
    assert sizes(False) == {8}


def test_a_changed_latent_is_compared_with_the_image_of_the_same_change(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = replace(TINY_1, autoencoder=replace(TINY_1.autoencoder, equivariance=1.0))
    module, change, x = AutoencoderModule(cfg).train(), Change(1, 6), torch.rand(2, 1, 32, 32)
    targets: list[Tensor] = []

    def spy(cfg: Any, logits: Tensor, target: Tensor) -> Tensor:
        targets.append(target)
        return logits.mean()

    monkeypatch.setattr(autoencoder, "random_change", lambda side: change)
    monkeypatch.setitem(autoencoder.RECONSTRUCTION, type(cfg.autoencoder.loss), spy)
    module.losses(module.vae, x)
    assert torch.equal(targets[0], change(x, 4))
