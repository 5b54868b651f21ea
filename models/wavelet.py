"""Orthonormal Haar transform by slices, and the gated wavelet resampling layers of the UNet."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def haar(x: Tensor) -> Tensor:
    """One level of the orthonormal 2-D Haar transform.

    x [B,C,H,W] with even H and W -> [B,4C,H/2,W/2], band by band in the order LL, LH, HL, HH
    (LH: differences between rows, pywt's cH; HL: between columns, cV). Raises ValueError for odd sizes.
    """
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"the Haar transform halves the size, so it needs even sizes, not {height}x{width}")
    top, bottom = x[..., 0::2, :], x[..., 1::2, :]
    low, high = top + bottom, top - bottom
    low_l, low_r, high_l, high_r = low[..., 0::2], low[..., 1::2], high[..., 0::2], high[..., 1::2]
    return torch.cat([low_l + low_r, high_l + high_r, low_l - low_r, high_l - high_r], dim=1) / 2


def inverse_haar(bands: Tensor) -> Tensor:
    """Exact inverse of :func:`haar`: bands [B,4C,h,w] -> [B,C,2h,2w]."""
    ll, lh, hl, hh = bands.chunk(4, dim=1)
    left_low, right_low, left_high, right_high = ll + hl, ll - hl, lh + hh, lh - hh
    pixels = torch.stack(
        [left_low + left_high, right_low + right_high, left_low - left_high, right_low - right_high], dim=2
    )  # [B,C,4,h,w], in the order of pixel_shuffle: top left, top right, bottom left, bottom right
    return F.pixel_shuffle(pixels.flatten(1, 2) / 2, 2)


class BandGate(nn.Module):
    """One gate in (0, 2) per band and channel from the features and the time embedding; all gates start at 1.

    Gates that depend on time let the network treat coarse and fine bands differently along the path, the idea of
    Spectral Diffusion (Yang et al., CVPR 2023, arXiv 2211.17106), which sees the time only through the features.
    """

    def __init__(self, channels: int, emb_channels: int, out_channels: int) -> None:
        super().__init__()
        hidden = max(8, out_channels // 2)
        self.features = nn.Linear(channels, hidden)
        self.embedding = nn.Linear(emb_channels, hidden, bias=False)
        self.out = nn.Linear(hidden, 4 * out_channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [B,C,H,W], emb [B,E] -> gates [B,4*out_channels,1,1]."""
        hidden = self.features(x.mean(dim=(2, 3))) + self.embedding(emb)
        return 2 * torch.sigmoid(self.out(F.silu(hidden)))[:, :, None, None]


class WaveletDown(nn.Module):
    """Halves the size: Haar bands, gates, and a mix of the bands; starts as 2x2 average pooling.

    ``mode="concat"`` mixes the four gated bands with a 1x1 convolution. ``mode="sum"`` adds them, as Spectral Diffusion
    does; the plain sum of the four bands is twice the top-left pixel (decimation), so here its detail gates start at 0.
    """

    def __init__(self, channels: int, emb_channels: int, mode: str = "concat", gates: bool = True) -> None:
        super().__init__()
        self.gate = BandGate(channels, emb_channels, channels) if gates else None
        self.mix: nn.Conv2d | None = None
        if mode == "concat":
            self.mix = nn.Conv2d(4 * channels, channels, 1)
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]  # a Conv2d made with a bias has one
            with torch.no_grad():
                self.mix.weight[:, :channels, 0, 0] = torch.eye(channels)
        elif self.gate is None:
            raise ValueError("the sum of ungated bands is twice the top-left pixel; gate them, or use mode 'concat'")
        else:
            with torch.no_grad():
                self.gate.out.bias[channels:] = -20.0  # 2*sigmoid(-20) is 0 to fp32's precision of the sum

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        """x [B,C,H,W], emb [B,E] -> [B,C,H/2,W/2] and the high bands LH, HL, HH [B,3C,H/2,W/2]."""
        channels = x.shape[1]
        bands = haar(x)
        high = bands[:, channels:]
        gated = torch.cat([bands[:, :channels] / 2, high], dim=1)  # LL at the scale of a mean
        if self.gate is not None:
            gated = gated * self.gate(x, emb)
        if self.mix is not None:
            return self.mix(gated), high
        return torch.stack(gated.chunk(4, dim=1)).sum(0), high


class WaveletUp(nn.Module):
    """Doubles the size: predicted bands plus the encoder's high bands, gated, through the inverse transform.

    The high bands that the encoder saw at this size bypass the bottleneck (WaveDiff, Phung et al., CVPR 2023,
    arXiv 2211.16152) through a per-band 1x1 convolution whose scale starts at zero, so the layer starts as a
    1x1 convolution with nearest-neighbour upsampling. ``gates`` and ``band_skips`` switch one part each off.
    """

    def __init__(
        self, channels: int, out_channels: int, emb_channels: int, gates: bool = True, band_skips: bool = True
    ) -> None:
        super().__init__()
        self.gate = BandGate(channels, emb_channels, out_channels) if gates else None
        self.bands = nn.Conv2d(channels, 4 * out_channels, 1)
        self.skip: nn.Conv2d | None = None
        if band_skips:
            self.skip = nn.Conv2d(3 * out_channels, 3 * out_channels, 1, groups=3)
            self.skip_scale = nn.Parameter(torch.zeros(3 * out_channels, 1, 1))
        with torch.no_grad():
            self.bands.weight[out_channels:] = 0
            self.bands.bias.zero_()  # type: ignore[union-attr]  # made with a bias

    def forward(self, x: Tensor, emb: Tensor, high: Tensor) -> Tensor:
        """x [B,C,h,w], emb [B,E], high [B,3C',h,w] -> [B,C',2h,2w]."""
        channels = high.shape[1] // 3
        bands = self.bands(x)
        detail = bands[:, channels:]
        if self.skip is not None:
            detail = detail + self.skip_scale * self.skip(high)
        bands = torch.cat([2 * bands[:, :channels], detail], dim=1)
        return inverse_haar(bands if self.gate is None else bands * self.gate(x, emb))


class ConvDown(nn.Module):
    """A strided convolution, with the interface of :class:`WaveletDown`.

    ``kernel=3`` is the usual one. ``kernel=2`` has the operations of the Haar bands' mix: C^2 H W multiplications.
    """

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, stride=2, padding=kernel // 3)

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        """x [B,C,H,W] -> [B,C,H/2,W/2] and no high bands [B,0,H/2,W/2]."""
        y = self.conv(x)
        return y, y[:, :0]


class ConvUp(nn.Module):
    """Upsampling by convolution, with the interface of :class:`WaveletUp`.

    ``kernel=3`` follows the usual nearest-neighbour upsampling. ``kernel=2`` is a transposed convolution of stride 2,
    which has the operations of the 1x1 convolution that predicts the Haar bands.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.nearest = kernel == 3
        self.conv: nn.Module = (
            nn.Conv2d(channels, out_channels, 3, padding=1)
            if self.nearest
            else nn.ConvTranspose2d(channels, out_channels, 2, stride=2)
        )

    def forward(self, x: Tensor, emb: Tensor, high: Tensor) -> Tensor:
        """x [B,C,h,w] -> [B,C',2h,2w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.nearest else x)
