"""A Diffusion Transformer (Peebles & Xie, ICCV 2023, arXiv 2212.09748) with the interface of the UNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.backbone_cfg import DiTCfg
from configs.checks import ConfigError
from models.attention import attend, pick_kernel
from models.backbone import Backbone
from models.text import Condition
from models.wavelet import haar, inverse_haar


def positions(channels: int, rows: int, columns: int) -> Tensor:
    """Fixed sinusoids of a grid's places, [1,rows*columns,channels]: half of the channels for the row, half for the
    column, with the rates of Vaswani et al. 2017, section 3.5. ``channels`` must be a multiple of 4.
    """
    rates = 10000.0 ** (-torch.arange(channels // 4) / (channels // 4))

    def along(places: int) -> Tensor:  # [places,channels/2]
        angles = torch.arange(places)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    by_row = along(rows)[:, None].expand(rows, columns, -1)
    by_column = along(columns)[None, :].expand(rows, columns, -1)
    return torch.cat([by_row, by_column], dim=2).reshape(1, rows * columns, channels)


def split_patches(x: Tensor, size: int, wavelet: bool) -> Tensor:
    """x [B,C,h,w] -> [B,C*size^2,h/size,w/size]: the pixels of each patch, or log2(size) levels of Haar bands."""
    if not wavelet:
        return F.pixel_unshuffle(x, size)
    for _ in range(size.bit_length() - 1):
        x = haar(x)
    return x


def join_patches(patches: Tensor, size: int, wavelet: bool) -> Tensor:
    """Exact inverse of :func:`split_patches`."""
    if not wavelet:
        return F.pixel_shuffle(patches, size)
    for _ in range(size.bit_length() - 1):
        patches = inverse_haar(patches)
    return patches


def linear(features: int, out_features: int) -> nn.Linear:
    """Xavier-uniform weights and no bias at the start, as in the paper's code."""
    layer = nn.Linear(features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_linear(features: int, out_features: int) -> nn.Linear:
    """Answers 0 at the start."""
    layer = nn.Linear(features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def plain_norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)  # the modulation scales and shifts


class DiTBlock(nn.Module):
    """Attention, then an MLP; the embedding scales, shifts and gates both (adaLN-zero). Starts as the identity.

    The prompt's tokens give further keys and values (as in :class:`models.attention.PixelAttention`).
    """

    def __init__(self, cfg: DiTCfg, emb: int, token_channels: int) -> None:
        super().__init__()
        self.heads, self.kernel = cfg.width // cfg.head_channels, cfg.attention
        self.modulation = zero_linear(emb, 6 * cfg.width)
        self.norm1 = plain_norm(cfg.width)
        self.qkv = linear(cfg.width, 3 * cfg.width)
        self.token_kv = linear(token_channels, 2 * cfg.width)
        self.out = linear(cfg.width, cfg.width)
        self.norm2 = plain_norm(cfg.width)
        hidden = cfg.mlp_ratio * cfg.width
        self.mlp = nn.Sequential(
            linear(cfg.width, hidden), nn.GELU("tanh"), nn.Dropout(cfg.dropout), linear(hidden, cfg.width)
        )

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
        """x [B,N,C], emb [B,E], tokens [B,L,D], keep [B,L] bool (False: padding) -> [B,N,C]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, dim=2)  # [B,1,C] each
        y = torch.addcmul(shift1, self.norm1(x), 1 + scale1)
        kernel = pick_kernel(self.kernel, x.device.type)
        x = torch.addcmul(x, gate1, self.out(attend(self.qkv(y), self.token_kv(tokens), keep, self.heads, kernel)))
        y = torch.addcmul(shift2, self.norm2(x), 1 + scale2)
        return torch.addcmul(x, gate2, self.mlp(y))


class DiT(Backbone):
    """A transformer over patches of the latent.

    ``latent_shape`` is (C, h, w); h and w must be multiples of ``cfg.patch_size`` (ConfigError otherwise). Unlike the
    UNet it answers latents of that shape only, because its positions are fixed. ``text_features`` is the width of the
    frozen encoder's token states.
    """

    def __init__(self, cfg: DiTCfg, latent_shape: tuple[int, int, int], text_features: int, text_width: int) -> None:
        super().__init__(cfg, cfg.width, text_features, text_width, [cfg.width])
        latent_channels, height, width = latent_shape
        if height % cfg.patch_size or width % cfg.patch_size:
            raise ConfigError(
                f"the latent is {height}x{width}, but backbone.patch_size {cfg.patch_size} does not divide it: use a "
                f"smaller patch, or a data.image_size whose latent is a multiple of {cfg.patch_size}"
            )
        self.size, self.patch_size, self.wavelet = (height, width), cfg.patch_size, cfg.patch == "wavelet"
        self.grid = (height // cfg.patch_size, width // cfg.patch_size)
        values = latent_channels * cfg.patch_size**2
        self.patch_in = linear(values, cfg.width)  # over pixels: a patch x patch convolution of that stride
        self.register_buffer("positions", positions(cfg.width, *self.grid), persistent=False)
        self.positions: Tensor
        self.blocks = nn.ModuleList(DiTBlock(cfg, cfg.width, text_width) for _ in range(cfg.depth))
        self.norm_out = plain_norm(cfg.width)
        self.modulation_out = zero_linear(cfg.width, 2 * cfg.width)
        self.patch_out = zero_linear(cfg.width, values)

    def stages(self) -> dict[nn.Module, int]:
        return dict.fromkeys(self.blocks, self.patch_in.out_features)

    def last_layers(self) -> list[nn.Module]:
        return [self.norm_out, self.modulation_out, self.patch_out]

    def as_image(self, answer: Tensor) -> Tensor:
        return answer.transpose(1, 2).unflatten(2, self.grid)

    def forward(self, x: Tensor, t: Tensor, dt: Tensor, cond: Condition) -> Tensor:
        """x [B,C,h,w], t [B], dt [B], cond of B rows -> average velocity over [t, t+dt], [B,C,h,w] in fp32."""
        if x.shape[2:] != self.size:
            raise ValueError(f"the latent is {tuple(x.shape[2:])}, but this network was made for {self.size}")
        emb, tokens, keep = self.embed(t, dt, cond)  # [B,E], [B,1+L,D], [B,1+L]
        patches = split_patches(x, self.patch_size, self.wavelet).flatten(2).transpose(1, 2)  # [B,N,C*size^2]
        h = self.patch_in(patches.contiguous()) + self.positions  # [B,N,width]; a strided input makes linear slow
        hints = self.hints(cond, self.grid)
        h = h if hints is None else h + hints[0].flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = self.run(block, h, emb, tokens, keep)
        shift, scale = self.modulation_out(emb)[:, None].chunk(2, dim=2)
        values = self.patch_out(torch.addcmul(shift, self.norm_out(h), 1 + scale))  # [B,N,C*size^2]
        return join_patches(values.transpose(1, 2).unflatten(2, self.grid), self.patch_size, self.wavelet).float()
