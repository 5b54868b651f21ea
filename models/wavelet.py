"""Orthonormal Haar transform by slices, and the gated wavelet resampling layers of the UNet."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.folded import Folded

FEW = 64
"""Up to so many pixels, a product of matrices takes a CPU less time than a convolution of stride 2."""


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
    """Exact inverse of :func:`haar`: bands [B,4C,h,w] -> [B,C,2h,2w].

    The transform is orthonormal, so a 1x1 filter of bands [O,4C,1,1] becomes by this the 2x2 filter of pixels
    [O,C,2,2] that answers the same with a stride of 2.
    """
    return as_image(pixels_of(bands, dim=1))


def pixels_of(bands: Tensor, dim: int = 0) -> Tensor:
    """The bands of 2x2 places, chunks of ``dim``, to their pixels: top left, top right, bottom left, bottom right."""
    ll, lh, hl, hh = bands.chunk(4, dim)
    left_low, right_low, left_high, right_high = ll + hl, ll - hl, lh + hh, lh - hh
    return (
        torch.cat([left_low + left_high, right_low + right_high, left_low - left_high, right_low - right_high], dim) / 2
    )


def as_image(pixels: Tensor) -> Tensor:
    """Pixels [B,4C,h,w] as :func:`pixels_of` orders them -> [B,C,2h,2w] in the same memory format."""
    rows, channels, height, width = pixels.shape[0], pixels.shape[1] // 4, *pixels.shape[2:]
    places = pixels.unflatten(1, (2, 2, channels))
    if pixels.is_contiguous(memory_format=torch.channels_last) and not pixels.is_contiguous():
        image = places.permute(0, 4, 1, 5, 2, 3).reshape(rows, 2 * height, 2 * width, channels)
        return image.permute(0, 3, 1, 2)
    return places.permute(0, 3, 4, 1, 5, 2).reshape(rows, channels, 2 * height, 2 * width)


def patches(x: Tensor) -> Tensor:
    """x [B,C,H,W] -> its two by two pixels beside each other, [B,H/2,W/2,4C], pixel by pixel."""
    rows, channels, height, width = x.shape
    places = x.permute(0, 2, 3, 1).reshape(rows, height // 2, 2, width // 2, 2, channels)
    return places.transpose(2, 3).reshape(rows, height // 2, width // 2, 4 * channels)


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


class WaveletDown(Folded):
    """Halves the size: Haar bands, gates, and a mix of the bands; starts as 2x2 average pooling.

    ``mode="concat"`` mixes the four gated bands with a 1x1 convolution; without gates transform and mix are one 2x2
    convolution of stride 2. ``mode="sum"`` adds the bands, as Spectral Diffusion does; the plain sum of the four is
    twice the top-left pixel (decimation), so here its detail gates are from -1 to 1 and start at 0.
    """

    def __init__(self, channels: int, emb_channels: int, mode: str = "concat", gates: bool = True) -> None:
        super().__init__()
        self.gate = BandGate(channels, emb_channels, channels) if gates and mode == "concat" else None
        self.sum_gate = BandGate(channels, emb_channels, channels) if gates and mode == "sum" else None
        self.mix: nn.Conv2d | None = None
        self.basis: Tensor
        if mode == "concat":
            self.mix = nn.Conv2d(4 * channels, channels, 1)
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]  # a Conv2d made with a bias has one
            with torch.no_grad():
                self.mix.weight[:, :channels, 0, 0] = torch.eye(channels)
            pixels = inverse_haar(times_ll(torch.eye(4)[..., None, None], 0.5, dim=1))  # [4,1,2,2], one filter a band
            self.register_buffer("basis", pixels.flatten(1).t().contiguous(), persistent=False)
        elif self.sum_gate is None:
            raise ValueError("the sum of ungated bands is twice the top-left pixel; gate them, or use mode 'concat'")

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [B,C,H,W], emb [B,E] -> [B,C,H/2,W/2]."""
        if self.gate is None and self.mix is not None:
            return self.mixed(x, self.mix)
        bands = times_ll(haar(x), 0.5, dim=1)
        if self.mix is not None:
            return self.mix(bands if self.gate is None else bands * self.gate(x, emb))
        assert self.sum_gate is not None
        ll, details = self.sum_gate(x, emb).tensor_split([x.shape[1]], dim=1)
        return (bands * torch.cat([ll, details - 1], 1)).unflatten(1, (4, -1)).sum(1)

    def mixed(self, x: Tensor, mix: nn.Conv2d) -> Tensor:
        """Transform and mix in one. x [B,C,H,W] -> [B,C,H/2,W/2] in the same memory format."""
        channels, first = x.shape[1], x.is_contiguous()
        few = x.device.type == "cpu" and x.shape[2:].numel() <= FEW and not torch.compiler.is_compiling()

        def fold() -> Tensor:
            by_pixel = torch.matmul(self.basis, mix.weight.view(channels, 4, channels))  # [C,4,C]
            if few:
                return by_pixel.view(channels, 4 * channels)
            filters = by_pixel.view(channels, 2, 2, channels).permute(0, 3, 1, 2)  # [C,C,2,2], channels last
            return filters.contiguous() if first else filters  # or torch would convert x, too

        filters = self.folded(x, fold)
        if few:
            y = F.linear(patches(x), filters, mix.bias).permute(0, 3, 1, 2)
            return y.contiguous() if first else y
        return F.conv2d(x, filters, mix.bias, stride=2)


def times_ll(bands: Tensor, factor: float, dim: int) -> Tensor:
    """Multiply the first of the four chunks of ``dim`` (2: a mean of pixels to the LL band of pixels that equal it)."""
    ll, *high = bands.chunk(4, dim)
    return torch.cat([ll * factor, *high], dim)


class WaveletUp(Folded):
    """Doubles the size: predicted bands plus the encoder's high bands, gated, through the inverse transform.

    The high bands of what the encoder saw at this size bypass the bottleneck (WaveDiff, Phung et al., CVPR 2023,
    arXiv 2211.16152) through a per-band 1x1 convolution whose scale starts at zero, so the layer starts as a
    1x1 convolution with nearest-neighbour upsampling. ``gates`` and ``band_skips`` switch one part each off. Without
    gates the transform is folded into the filters: what they predict are pixels.
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

    def forward(self, x: Tensor, emb: Tensor, fine: Tensor) -> Tensor:
        """x [B,C,h,w], emb [B,E], fine [B,C',2h,2w] that the encoder saw at this size -> [B,C',2h,2w]."""
        weight, bias, seen = self.folded(x, lambda: self.filters(fine.shape[1]))
        y = F.conv2d(x, weight, bias)
        if seen is not None:
            y = y + F.conv2d(fine, seen, stride=2)  # of pixels, not of bands
        return as_image(y) if self.gate is None else inverse_haar(y * self.gate(x, emb))

    def filters(self, channels: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Filters and bias of x, [4C',C,1,1] and [4C'], and with ``band_skips`` those of ``fine``, [4C',C',2,2]."""
        weight = times_ll(self.bands.weight, 2, dim=0)
        bias = times_ll(self.bands.bias, 2, dim=0)  # type: ignore[arg-type]  # made with a bias
        seen = None
        if self.skip is not None:
            filters = (self.skip_scale[:, None] * self.skip.weight)[..., 0, 0]  # [3C',C'], band by band
            seen = F.pad(torch.block_diag(*filters.chunk(3)), (channels, 0, channels, 0))  # [4C',4C'], LL sees nothing
            own: Tensor = self.skip.bias  # type: ignore[assignment]  # made with one
            bias = bias + F.pad(self.skip_scale.flatten() * own, (channels, 0))
        if self.gate is None:  # the filters predict pixels at once
            weight, bias = pixels_of(weight), pixels_of(bias)
            seen = None if seen is None else pixels_of(seen)
        return weight, bias, None if seen is None else inverse_haar(seen[..., None, None])
