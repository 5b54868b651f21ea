"""Nearest neighbour and a convolution as one smaller convolution."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.shipped import checkpoint_path
from models.resampling import ConvUp, NearestConv
from scripts.mask_model import load_mask_model


def one_by_one(layer: NearestConv, x: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), layer.weight, layer.bias, padding=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (8, 8)])
def test_it_answers_as_nearest_neighbour_and_then_the_convolution(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = NearestConv(5, 3).double()
    x = torch.randn(2, 5, *size, dtype=torch.double).contiguous(memory_format=layout).requires_grad_()
    y, expected = layer(x), one_by_one(layer, x)
    assert y.shape == (2, 3, 2 * size[0], 2 * size[1])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    weigh = torch.randn_like(y)
    for own, wanted in zip(
        torch.autograd.grad((y * weigh).sum(), [x, *layer.parameters()]),
        torch.autograd.grad((expected * weigh).sum(), [x, *layer.parameters()]), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(own, wanted, rtol=0, atol=1e-10)


def test_its_weights_are_those_of_the_convolution() -> None:
    assert {name: tuple(value.shape) for name, value in ConvUp(4, 6, 3).state_dict().items()} == {
        "conv.weight": (6, 4, 3, 3), "conv.bias": (6,),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["animals", "icons"])
def test_models_of_before_decode_as_they_did(name: str) -> None:
    decoder = load_mask_model(checkpoint_path(name)).autoencoder.average.decoder
    shape = load_mask_model(checkpoint_path(name)).latent_shape
    x = y = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for layer in decoder:
            x = one_by_one(layer, x) if isinstance(layer, NearestConv) else layer(x)
        logits = decoder(y)
    assert sum(isinstance(layer, NearestConv) for layer in decoder) == 2
    torch.testing.assert_close(logits, x, rtol=1e-4, atol=1e-3)
