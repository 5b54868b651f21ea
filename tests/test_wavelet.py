"""The Haar transform and the resampling layers against pywt and closed forms."""

import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.resampling import ConvDown, ConvUp
from models.wavelet import WaveletDown, WaveletUp, haar, inverse_haar


def image(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_inverse_undoes_haar_for_every_even_size(rows: int, columns: int, channels: int) -> None:
    x = image(2, channels, 2 * rows, 2 * columns)
    torch.testing.assert_close(inverse_haar(haar(x)), x, rtol=0, atol=1e-12)


def test_haar_undoes_its_inverse() -> None:
    bands = image(2, 12, 4, 6)
    torch.testing.assert_close(haar(inverse_haar(bands)), bands, rtol=0, atol=1e-12)


def test_energy_of_the_bands_is_the_energy_of_the_image() -> None:  # Parseval
    x = image(3, 5, 8, 8)
    torch.testing.assert_close(haar(x).square().sum(dim=(1, 2, 3)), x.square().sum(dim=(1, 2, 3)), rtol=1e-12, atol=0)


def test_bands_are_those_of_pywt_in_the_order_ll_lh_hl_hh() -> None:
    x = image(1, 1, 8, 6)
    low, (horizontal, vertical, diagonal) = pywt.dwt2(x[0, 0].numpy(), "haar")
    expected = torch.stack([torch.from_numpy(band) for band in (low, horizontal, vertical, diagonal)])
    torch.testing.assert_close(haar(x)[0], expected, rtol=0, atol=1e-12)


def test_channels_stay_together_within_a_band() -> None:
    x = image(2, 3, 4, 4)
    one_by_one = torch.stack([haar(x[:, c : c + 1]) for c in range(3)], dim=2)  # [B,4,C,h,w]
    torch.testing.assert_close(haar(x), one_by_one.flatten(1, 2), rtol=0, atol=0)


def test_equal_gates_on_all_bands_only_decimate() -> None:
    """The four bands add up to twice the top-left pixel: why gates must differ between bands."""
    x = image(2, 3, 8, 8)
    total = haar(x).unflatten(1, (4, 3)).sum(1)
    torch.testing.assert_close(total, 2 * x[..., ::2, ::2], rtol=0, atol=1e-12)


def test_odd_sizes_are_refused_with_their_size() -> None:
    with pytest.raises(ValueError, match="5x4"):
        haar(torch.zeros(1, 1, 5, 4))


@pytest.mark.parametrize("mode", ["concat", "sum"])
def test_wavelet_down_starts_as_average_pooling(mode: str) -> None:
    x, emb = image(2, 8, 6, 6, dtype=torch.float32), image(2, 16, dtype=torch.float32)
    y = WaveletDown(8, 16, mode)(x, emb)
    torch.testing.assert_close(y, torch.nn.functional.avg_pool2d(x, 2), rtol=0, atol=1e-6)


def test_the_detail_gates_of_the_sum_learn_as_fast_as_the_others() -> None:
    down = WaveletDown(8, 16, "sum")
    down(image(2, 8, 6, 6).float(), image(2, 16).float()).square().sum().backward()
    assert down.sum_gate is not None
    slope = down.sum_gate.out.bias.grad
    assert slope is not None
    assert slope[8:].abs().mean() > 0.1 * slope[:8].abs().mean()


def test_wavelet_up_starts_as_nearest_neighbour_upsampling_of_a_1x1_convolution() -> None:
    x, emb, fine = image(2, 8, 3, 3).float(), image(2, 16).float(), image(2, 4, 6, 6).float()
    up = WaveletUp(8, 4, 16)
    small = torch.nn.functional.conv2d(x, up.bands.weight[:4])
    expected = torch.nn.functional.interpolate(small, scale_factor=2, mode="nearest")
    torch.testing.assert_close(up(x, emb, fine), expected, rtol=0, atol=1e-5)


def test_the_encoders_high_bands_come_back_unchanged_through_the_skip() -> None:
    """Down then up with an identity in between restores the image: nothing of the bands is lost or reordered."""
    x, emb = image(2, 4, 6, 6).float(), image(2, 16).float()
    low = WaveletDown(4, 16)(x, emb)
    up = WaveletUp(4, 4, 16)
    with torch.no_grad():
        up.bands.weight[:4] = torch.eye(4)[:, :, None, None]
        up.skip_scale.fill_(1)
        up.skip.weight.copy_(torch.eye(4).repeat(3, 1)[:, :, None, None])
        up.skip.bias.zero_()
    torch.testing.assert_close(up(low, emb, x), x, rtol=0, atol=1e-5)


def test_gates_depend_on_the_time_embedding_once_trained() -> None:
    x, down = image(2, 4, 4, 4).float(), WaveletDown(4, 16)
    torch.nn.init.normal_(down.gate.out.weight)
    one, other = (down(x, image(2, 16).float() * s) for s in (0.0, 3.0))
    assert not torch.allclose(one, other)


def test_an_open_gate_is_no_gate_and_an_unscaled_skip_is_no_skip() -> None:
    """Each switch takes one part away: a layer as it starts equals the layer without the part, weights being equal."""
    x, emb, fine = image(2, 8, 6, 6).float(), image(2, 16).float(), image(2, 4, 12, 12).float()
    down, up = WaveletDown(8, 16), WaveletUp(8, 4, 16)
    for layer in (down.mix, up.bands):
        torch.nn.init.normal_(layer.weight)  # type: ignore[union-attr]  # a layer with weights
    plain = WaveletDown(8, 16, gates=False)
    plain.load_state_dict(down.state_dict(), strict=False)
    torch.testing.assert_close(plain(x, emb), down(x, emb), rtol=0, atol=1e-5)
    for switches in ({"gates": False}, {"band_skips": False}, {"gates": False, "band_skips": False}):
        less = WaveletUp(8, 4, 16, **switches)
        missing, unexpected = less.load_state_dict(up.state_dict(), strict=False)
        assert not missing
        assert {name.split(".")[0] for name in unexpected} == {
            part for switch in switches for part in {"gates": ["gate"], "band_skips": ["skip", "skip_scale"]}[switch]
        }
        torch.testing.assert_close(less(x, emb, fine), up(x, emb, fine), rtol=0, atol=1e-5)


def test_ungated_bands_are_a_strided_convolution_of_kernel_2_and_back() -> None:
    """Without gates and skips the wavelet layers span the functions of the convolutions that they are compared with."""
    x, emb, fine = image(2, 3, 6, 4).float(), image(2, 16).float(), image(2, 5, 6, 4).float()
    down, conv_down = WaveletDown(3, 16, gates=False), ConvDown(3, kernel=2)
    up, conv_up = WaveletUp(3, 5, 16, gates=False, band_skips=False), ConvUp(3, 5, kernel=2)
    for parameter in (*down.parameters(), *up.parameters()):
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        pixels = torch.eye(12).reshape(12, 3, 2, 2)  # one 2x2 patch for each weight of a filter
        bias = down(torch.zeros(1, 3, 2, 2), emb).flatten()
        conv_down.conv.weight.copy_((down(pixels, emb).flatten(1) - bias).T.reshape(3, 3, 2, 2))
        conv_down.conv.bias.copy_(bias)  # type: ignore[union-attr]  # made with a bias
        up.bands.bias[5:] = 0  # type: ignore[index]  # a bias of a detail band is a checkerboard, which a bias cannot be
        none = fine[:1, :, :2, :2]
        at_zero = up(torch.zeros(1, 3, 1, 1), emb[:1], none)
        answers = up(torch.eye(3)[:, :, None, None], emb[:1], none.expand(3, -1, -1, -1))
        conv_up.conv.weight.copy_(answers - at_zero)  # type: ignore[operator]  # a tensor
        conv_up.conv.bias.copy_(at_zero[0, :, 0, 0])  # type: ignore[operator]  # a tensor
    torch.testing.assert_close(conv_down(x, emb), down(x, emb), rtol=0, atol=1e-5)
    small = image(2, 3, 3, 2).float()
    torch.testing.assert_close(conv_up(small, emb, fine), up(small, emb, fine), rtol=0, atol=1e-5)


@pytest.mark.parametrize("gates", [True, False])
def test_folded_filters_answer_as_the_bands_one_by_one(gates: bool) -> None:
    """Down and up as their formulas say, with random weights."""
    x, fine, emb = image(2, 8, 6, 4).float(), image(2, 5, 12, 8).float(), image(2, 16).float()
    down, up = WaveletDown(8, 16, gates=gates), WaveletUp(8, 5, 16, gates=gates)
    for parameter in (*down.parameters(), *up.parameters()):
        torch.nn.init.normal_(parameter)
    opening = down.gate(x, emb) if down.gate is not None else 1
    expected = down.mix(torch.cat([haar(x)[:, :8] / 2, haar(x)[:, 8:]], dim=1) * opening)  # type: ignore[misc]  # concat
    torch.testing.assert_close(down(x, emb), expected, rtol=1e-5, atol=1e-4)

    bands, opening = up.bands(x), up.gate(x, emb) if up.gate is not None else 1
    detail = bands[:, 5:] + up.skip_scale * up.skip(haar(fine)[:, 5:])  # type: ignore[misc]  # it has one
    expected = inverse_haar(torch.cat([2 * bands[:, :5], detail], dim=1) * opening)
    torch.testing.assert_close(up(x, emb, fine), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(2, 2), (6, 4), (8, 8), (10, 8), (16, 16)])
def test_few_and_many_pixels_go_down_alike(size: tuple[int, int], layout: torch.memory_format) -> None:
    """By whatever products; gradients, too."""
    down = WaveletDown(3, 16, gates=False).double().to(memory_format=layout)
    for parameter in down.parameters():
        torch.nn.init.normal_(parameter)
    x, emb = image(4, 3, *size).contiguous(memory_format=layout).requires_grad_(), image(4, 16)
    y = down(x, emb)
    expected = down.mix(torch.cat([haar(x)[:, :3] / 2, haar(x)[:, 3:]], dim=1))  # type: ignore[misc]  # concat
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    weigh = torch.randn_like(y)
    own, other = (torch.autograd.grad((z * weigh).sum(), [x, *down.parameters()]) for z in (y, expected))
    for found, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_image_keeps_its_memory_format_through_bands_and_back(layout: torch.memory_format) -> None:
    x = image(2, 8, 6, 4).to(memory_format=layout)
    back = inverse_haar(haar(x).to(memory_format=layout))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    assert back.is_contiguous(memory_format=layout)


def test_a_sum_of_ungated_bands_is_refused() -> None:
    with pytest.raises(ValueError, match="twice the top-left pixel"):
        WaveletDown(8, 16, "sum", gates=False)


@pytest.mark.parametrize("kernel", [2, 3])
def test_conv_layers_answer_the_same_shapes(kernel: int) -> None:
    x, emb = image(2, 8, 6, 6).float(), image(2, 16).float()
    y = ConvDown(8, kernel)(x, emb)
    assert y.shape == (2, 8, 3, 3)
    assert ConvUp(8, 4, kernel)(y, emb, x[:, :4]).shape == (2, 4, 6, 6)
