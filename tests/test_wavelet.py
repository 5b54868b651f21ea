"""The Haar transform and the resampling layers against pywt and closed forms."""

import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.wavelet import ConvDown, ConvUp, WaveletDown, WaveletUp, haar, inverse_haar


def image(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
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
    y, high = WaveletDown(8, 16, mode)(x, emb)
    torch.testing.assert_close(y, torch.nn.functional.avg_pool2d(x, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(high, haar(x)[:, 8:], rtol=0, atol=0)


def test_wavelet_up_starts_as_nearest_neighbour_upsampling_of_a_1x1_convolution() -> None:
    x, emb, high = image(2, 8, 3, 3).float(), image(2, 16).float(), image(2, 12, 3, 3).float()
    up = WaveletUp(8, 4, 16)
    small = torch.nn.functional.conv2d(x, up.bands.weight[:4])
    expected = torch.nn.functional.interpolate(small, scale_factor=2, mode="nearest")
    torch.testing.assert_close(up(x, emb, high), expected, rtol=0, atol=1e-5)


def test_the_encoders_high_bands_come_back_unchanged_through_the_skip() -> None:
    """Down then up with an identity in between restores the image: nothing of the bands is lost or reordered."""
    x, emb = image(2, 4, 6, 6).float(), image(2, 16).float()
    low, high = WaveletDown(4, 16)(x, emb)
    up = WaveletUp(4, 4, 16)
    with torch.no_grad():
        up.bands.weight[:4] = torch.eye(4)[:, :, None, None]
        up.skip_scale.fill_(1)
        up.skip.weight.copy_(torch.eye(4).repeat(3, 1)[:, :, None, None])
        up.skip.bias.zero_()
    torch.testing.assert_close(up(low, emb, high), x, rtol=0, atol=1e-5)


def test_gates_depend_on_the_time_embedding_once_trained() -> None:
    x, down = image(2, 4, 4, 4).float(), WaveletDown(4, 16)
    torch.nn.init.normal_(down.gate.out.weight)
    one, other = (down(x, image(2, 16).float() * s)[0] for s in (0.0, 3.0))
    assert not torch.allclose(one, other)


def test_conv_layers_answer_the_same_shapes() -> None:
    x, emb = image(2, 8, 6, 6).float(), image(2, 16).float()
    y, high = ConvDown(8)(x, emb)
    assert y.shape == (2, 8, 3, 3)
    assert ConvUp(8, 4)(y, emb, high).shape == (2, 4, 6, 6)
