"""The 3x3 convolution of the blocks answers as torch's own, by whatever products."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import winograd
from models.conv import Conv3x3, FewPixels

LAYOUTS = [torch.contiguous_format, torch.channels_last]
SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (4, 4), (5, 4), (8, 8)]


def layer_and_input(size: tuple[int, int], layout: torch.memory_format, dtype: torch.dtype) -> tuple[Conv3x3, Tensor]:
    torch.manual_seed(0)
    layer = Conv3x3(5, 3).to(dtype).to(memory_format=layout)
    return layer, torch.randn(6, 5, *size, dtype=dtype).contiguous(memory_format=layout).requires_grad_()


def plain(layer: Conv3x3, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=1)


def gradients(y: Tensor, layer: Conv3x3, x: Tensor) -> tuple[Tensor, ...]:
    weigh = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return torch.autograd.grad((y * weigh).sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_it_answers_and_learns_as_torch(size: tuple[int, int], layout: torch.memory_format) -> None:
    layer, x = layer_and_input(size, layout, torch.double)
    y, wanted = layer(x), plain(layer, x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    for own, other in zip(gradients(y, layer, x), gradients(wanted, layer, x), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_in_bf16_it_is_as_near_to_the_exact_answer_as_torch(size: tuple[int, int], layout: torch.memory_format) -> None:
    exact_layer, exact_x = layer_and_input(size, layout, torch.double)
    layer, x = layer_and_input(size, layout, torch.float32)
    layer.load_state_dict(exact_layer.state_dict())
    x = exact_x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, torchs = layer(x), plain(layer, x)
    assert y.dtype == torch.bfloat16
    wanted = plain(exact_layer, exact_x)
    own, other = (gradients(value, layer, x) for value in (y, torchs))
    exact = gradients(wanted, exact_layer, exact_x)
    assert [g.dtype for g in own] == [torch.float32] * 3  # of the weights as they are kept
    for found, usual, right in zip((y, *own), (torchs, *other), (wanted, *exact), strict=True):
        assert (found - right).norm() <= 1.5 * (usual - right).norm() + 1e-3 * right.norm()


@pytest.mark.parametrize(("size", "taken"), [((2, 2), False), ((4, 4), True), ((8, 8), False)])
def test_the_way_for_few_pixels_is_taken_where_it_is_faster(
    size: tuple[int, int], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = FewPixels.apply
    monkeypatch.setattr(FewPixels, "apply", lambda *args: calls.append(1) or real(*args))
    for dtype in (torch.float32, torch.bfloat16):
        layer, x = layer_and_input(size, torch.contiguous_format, dtype)
        layer(x)
        assert bool(calls) == (taken and dtype == torch.bfloat16)
    with torch.no_grad():
        before = len(calls)
        layer(x)
        assert len(calls) == before


def test_frozen_parts_get_no_gradient() -> None:
    layer, x = layer_and_input((4, 4), torch.contiguous_format, torch.bfloat16)
    layer.weight.requires_grad_(False)
    layer(x).float().sum().backward()
    assert x.grad is not None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize("size", SIZES)
def test_no_rows_are_answered_by_none(size: tuple[int, int]) -> None:
    layer, x = layer_and_input(size, torch.contiguous_format, torch.float32)
    assert layer(x[:0]).shape == (0, 3, *size)


def test_no_more_products_than_needed_at_two_by_two() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer, x = layer_and_input((2, 2), torch.contiguous_format, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    assert counter.get_total_flops() == 2 * 16 * 5 * 3 * len(x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(4, 4), (4, 8), (8, 4), (8, 8), (12, 16)])
def test_winograds_products_are_a_convolution(size: tuple[int, int], layout: torch.memory_format) -> None:
    layer, x = layer_and_input(size, layout, torch.double)
    y, wanted = winograd.by_tiles(x, winograd.tile_filters(layer.weight), layer.bias), plain(layer, x)
    assert y.is_contiguous(memory_format=layout if size == (4, 4) else torch.channels_last)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    for own, other in zip(gradients(y, layer, x), gradients(wanted, layer, x), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 4), (8, 8)])
def test_in_fp32_they_lose_two_bits_and_gradients_of_filters_three(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "products_keep_up", lambda: True)
    torch.manual_seed(0)
    layer, exact = (Conv3x3(128, 64).to(memory_format=torch.channels_last) for _ in range(2))
    exact.load_state_dict(layer.state_dict())
    exact.double()
    x = torch.randn(4, 128, *size).to(memory_format=torch.channels_last).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    assert winograd.pays(x, 64)
    ways = [(layer(x), layer, x), (plain(layer, x), layer, x), (plain(exact, exact_x), exact, exact_x)]
    found = zip((3, 3, 8, 2), *((y, *gradients(y, at, seen)) for y, at, seen in ways), strict=True)
    for most, own, torchs, wanted in found:  # the usual points lose 4, 4 and 10 times as much as torch
        assert (own - wanted).norm() <= most * (torchs - wanted).norm()


@pytest.mark.parametrize(
    ("shape", "layout", "taken"),
    [
        ((2, 32, 4, 4), torch.channels_last, True),
        ((2, 32, 4, 4), torch.contiguous_format, True),
        ((1, 32, 4, 4), torch.channels_last, False),  # one image
        ((2, 16, 4, 4), torch.channels_last, False),  # few channels
        ((2, 128, 8, 32), torch.channels_last, True),
        ((2, 96, 8, 32), torch.channels_last, False),
        ((2, 96, 16, 16), torch.channels_last, True),
        ((2, 64, 16, 16), torch.channels_last, False),
        ((2, 64, 8, 8), torch.channels_last, True),
        ((2, 64, 8, 8), torch.contiguous_format, False),
        ((2, 32, 8, 8), torch.channels_last, False),
        ((2, 128, 8, 6), torch.channels_last, False),  # no whole tiles
        ((2, 256, 8, 36), torch.channels_last, False),  # larger than was measured
    ],
)
def test_they_are_taken_where_they_are_faster(
    shape: tuple[int, ...], layout: torch.memory_format, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = winograd.by_tiles
    monkeypatch.setattr(winograd, "products_keep_up", lambda: True)
    monkeypatch.setattr(winograd, "by_tiles", lambda *args: calls.append(1) or real(*args))
    layer = Conv3x3(shape[1], shape[1]).to(memory_format=layout)
    x = torch.randn(shape).contiguous(memory_format=layout)
    torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-4, atol=1e-5)
    assert bool(calls) == taken
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert len(calls) == taken


@pytest.mark.parametrize(
    ("mkl", "instructions", "maker", "taken"),
    [
        (True, "AVX512", "GenuineIntel", True),
        (True, "AVX512", "AuthenticAMD", False),  # half of the speed of convolutions (docs/speed.md)
        (True, "AVX2", "AuthenticAMD", True),
        (False, "DEFAULT", "", False),  # ARM: not measured
    ],
)
def test_they_are_left_out_where_products_of_matrices_are_slow(
    mkl: bool, instructions: str, maker: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(winograd.Path, "read_text", lambda *_, **__: f"vendor_id : {maker}")
    monkeypatch.setattr(winograd.platform, "processor", lambda: maker)
    winograd.products_keep_up.cache_clear()
    try:
        assert winograd.pays(torch.zeros(2, 32, 4, 4), 32) == taken
    finally:
        winograd.products_keep_up.cache_clear()
