"""Filters that are folded once answer as those that are folded at each call."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.sampler_cfg import TrajectoryCfg
from configs.shipped import checkpoint_path
from diffusion import DiffusionModule
from models import winograd
from models.conv import Conv3x3
from models.folded import Folded, folded_once, keep_folded
from models.resampling import NearestConv
from models.wavelet import WaveletDown, WaveletUp
from samplers import When, build_sampler
from scripts.mask_model import load_mask_model

ROWS, CHANNELS, EMB = 3, 4, 8
EMBEDDING, FINE = torch.randn(ROWS, EMB), torch.randn(ROWS, CHANNELS, 4, 4)


def wider(x: Tensor) -> Tensor:
    """x [B,4,2,2] -> [B,32,4,4] in its memory format: what Winograd's products are for."""
    y = x.repeat(1, 8, 2, 2)
    return y if x.is_contiguous() else y.contiguous(memory_format=torch.channels_last)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "conv": (lambda: Conv3x3(CHANNELS, 5), lambda layer, x: layer(x)),
    "winograd": (lambda: Conv3x3(8 * CHANNELS, 8 * CHANNELS), lambda layer, x: layer(wider(x))),
    "nearest": (lambda: NearestConv(CHANNELS, 5), lambda layer, x: layer(x)),
    "down": (lambda: WaveletDown(CHANNELS, EMB, gates=False), lambda layer, x: layer(x, EMBEDDING.to(x.dtype))),
    "up": (
        lambda: WaveletUp(CHANNELS, CHANNELS, EMB, gates=False, band_skips=False),
        lambda layer, x: layer(x, EMBEDDING.to(x.dtype), FINE.to(x.dtype)),
    ),
    "up with skips": (
        lambda: WaveletUp(CHANNELS, CHANNELS, EMB),
        lambda layer, x: layer(x, EMBEDDING.to(x.dtype), FINE.to(x.dtype)),
    ),
}


@pytest.fixture(autouse=True)
def fast_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Winograd's products are taken whatever machine runs the tests."""
    monkeypatch.setattr(winograd, "products_keep_up", lambda: True)


@pytest.fixture(params=LAYERS)
def layers(request: pytest.FixtureRequest) -> tuple[Folded, nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """A layer that keeps its filters, the same layer as it is trained, and how both are called."""
    make, call = LAYERS[request.param]
    torch.manual_seed(0)
    plain = make()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    kept = deepcopy(plain)
    keep_folded(kept)
    assert isinstance(kept, Folded)
    return kept, plain, call


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(ROWS, CHANNELS, 2, 2, dtype=dtype)


def test_it_folds_once_and_answers_the_same(layers: tuple[Folded, nn.Module, Callable[..., Tensor]]) -> None:
    kept, plain, call = layers
    for _ in range(3):
        x = inputs()
        with torch.inference_mode():
            assert torch.equal(call(kept, x), call(plain, x))
    assert kept.kept is not None
    assert len(kept.kept) == 1


def test_every_number_and_memory_format_has_its_own(layers: tuple[Folded, nn.Module, Callable[..., Tensor]]) -> None:
    kept, plain, call = layers
    for _ in range(2):
        for layout in (torch.contiguous_format, torch.channels_last):
            for bf16 in (False, True):
                x = inputs().contiguous(memory_format=layout)
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    own, other = call(kept, x), call(plain, x)
                assert own.dtype == other.dtype
                assert torch.equal(own, other)
                assert own.stride() == other.stride()


def test_weights_that_are_converted_are_folded_anew(layers: tuple[Folded, nn.Module, Callable[..., Tensor]]) -> None:
    kept, plain, call = layers
    call(kept, inputs())
    x = inputs(torch.double)
    assert torch.equal(call(kept.double(), x), call(plain.double(), x))


def test_what_was_kept_in_inference_mode_serves_gradients_too(
    layers: tuple[Folded, nn.Module, Callable[..., Tensor]],
) -> None:
    kept, plain, call = layers
    kept.requires_grad_(False)
    with torch.inference_mode():
        call(kept, inputs())
    x = inputs().requires_grad_()
    (own,), (other,) = (torch.autograd.grad(call(layer, x).square().sum(), x) for layer in (kept, plain))
    torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)


def test_a_model_to_draw_with_keeps_them_and_one_to_train_does_not(tiny_diffusion: DiffusionModule) -> None:
    drawing = [layer for layer in load_mask_model(checkpoint_path("animals")).modules() if isinstance(layer, Folded)]
    training = [layer for layer in tiny_diffusion.modules() if isinstance(layer, Folded)]
    assert drawing
    assert training
    assert all(layer.kept is not None for layer in drawing)
    assert all(layer.kept is None for layer in training)


def test_training_sees_weights_as_they_are() -> None:
    layer = Conv3x3(CHANNELS, 5)
    x = inputs()
    before = layer(x)
    with torch.no_grad():
        layer.weight.add_(1)
    assert not torch.allclose(layer(x), before)


def test_within_a_step_a_teacher_folds_once_and_forgets_it(
    layers: tuple[Folded, nn.Module, Callable[..., Tensor]],
) -> None:
    kept, plain, call = layers
    kept.kept = None
    x = inputs()
    with folded_once(kept), torch.no_grad():
        assert torch.equal(call(kept, x), call(plain, x))
        assert len(kept.kept or ()) == 1
    assert kept.kept is None
    with pytest.raises(RuntimeError), folded_once(kept):
        raise RuntimeError
    assert kept.kept is None
    with torch.no_grad():
        for layer in (kept, plain):
            for parameter in layer.parameters():
                parameter.add_(1)
        with folded_once(kept):
            assert torch.equal(call(kept, x), call(plain, x))


def test_a_model_to_draw_with_stays_as_it_is() -> None:
    model = load_mask_model(checkpoint_path("animals"))
    drawing = [layer for layer in model.modules() if isinstance(layer, Folded)]
    with folded_once(model):
        pass
    assert all(layer.kept is not None for layer in drawing)


def test_the_teacher_of_a_step_folds_once(
    tiny_diffusion: DiffusionModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(net: nn.Module, *_: Any, teacher: nn.Module, **__: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen.extend((kept_by(teacher), kept_by(net)))
        return torch.zeros(()), {}

    def kept_by(network: nn.Module) -> list[Any]:
        return [layer.kept for layer in network.modules() if isinstance(layer, Folded)]

    seen: list[list[Any]] = []
    monkeypatch.setattr(tiny_diffusion.sampler, "loss", loss)
    x1 = torch.zeros(2, *tiny_diffusion.latent_shape)
    cond = tiny_diffusion.encode_text(["a", "b"], x1.device)
    tiny_diffusion.loss(x1, cond, When())
    teachers, trained = seen
    assert teachers == [{}] * len(teachers) != []
    assert trained == [None] * len(trained) != []
    assert kept_by(tiny_diffusion.teacher) == [None] * len(teachers)
    seen.clear()
    tiny_diffusion.sampler = build_sampler(TrajectoryCfg(begin=0.5))
    monkeypatch.setattr(tiny_diffusion.sampler, "loss", loss)
    tiny_diffusion.loss(x1, cond, When(progress=0.4))
    assert seen[0] == [None] * len(teachers)  # which is not asked yet


def test_filters_are_folded_once_for_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fold = winograd.tile_filters
    monkeypatch.setattr(winograd, "tile_filters", lambda weight: calls.append(1) or fold(weight))
    layer, x = Conv3x3(32, 32), torch.randn(2, 32, 4, 4)
    with torch.no_grad():
        with folded_once(layer):
            layer(x), layer(x)
        assert len(calls) == 1
        layer(x), layer(x)
        assert len(calls) == 3


def test_elsewhere_than_on_a_cpu_nothing_is_kept() -> None:
    layer = Conv3x3(32, 32).to("meta")
    with folded_once(layer):
        assert layer.kept is None
