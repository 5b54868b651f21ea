"""Resampling by convolution: the usual layers, which wavelets are compared with, and the autoencoder's."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.folded import Folded
from models.wavelet import as_image


class NearestConv(Folded, nn.Conv2d):
    """A 3x3 convolution, padded with zeros, of the input at twice its size by nearest neighbour.

    Around each corner between four pixels of the input lie four pixels of the output, whose nine taps fall on these
    four alone. So a 2x2 convolution with four times the filters, whose taps are sums of the 3x3 ones, answers the same
    with 16 in the place of 36 products a pixel, and the large input is never made.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """input [B,C,h,w] -> [B,C',2h,2w]."""

        def fold() -> tuple[Tensor, Tensor | None]:
            filters = torch.cat([two for one in both(self.weight, 2) for two in both(one, 3)])  # [4C',C,2,2]
            return filters, None if self.bias is None else self.bias.repeat(4)

        weight, bias = self.folded(input, fold)
        around = as_image(F.conv2d(input, weight, bias, padding=1))  # [B,C',2h+2,2w+2]: also around the outer corners
        return around[:, :, 1:-1, 1:-1]


def both(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three taps along ``dim`` as two, for the output before a corner and for the one after it: two of the three fall
    on one pixel.
    """
    first, middle, last = weight.split(1, dim)
    return torch.cat([first + middle, last], dim), torch.cat([first, middle + last], dim)


class ConvDown(nn.Module):
    """A strided convolution, with the interface of :class:`models.wavelet.WaveletDown`.

    ``kernel=3`` is the usual one. ``kernel=2`` has the operations of the Haar bands' mix: C^2 H W multiplications.
    """

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, stride=2, padding=kernel // 3)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [B,C,H,W] -> [B,C,H/2,W/2]."""
        return self.conv(x)


class ConvUp(nn.Module):
    """Upsampling by convolution, with the interface of :class:`models.wavelet.WaveletUp`.

    ``kernel=3`` follows the usual nearest-neighbour upsampling. ``kernel=2`` is a transposed convolution of stride 2,
    which has the operations of the 1x1 convolution that predicts the Haar bands.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv: nn.Module = NearestConv(channels, out_channels)
        if kernel == 2:
            self.conv = nn.ConvTranspose2d(channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor, emb: Tensor, fine: Tensor) -> Tensor:
        """x [B,C,h,w] -> [B,C',2h,2w]."""
        return self.conv(x)
