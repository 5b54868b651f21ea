"""The wavelet UNet: average velocity of a latent, given time, step size and prompt."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from configs.backbone_cfg import UNetCfg
from configs.checks import ConfigError
from models.attention import PixelAttention
from models.backbone import Backbone
from models.blocks import ResBlock
from models.norm import GroupNorm
from models.resampling import ConvDown, ConvUp
from models.text import Condition
from models.wavelet import WaveletDown, WaveletUp


class Stage(nn.Module):
    """A residual block and, at small sizes, attention."""

    def __init__(self, cfg: UNetCfg, channels: int, out_channels: int, emb: int, tokens: int, size: int) -> None:
        super().__init__()
        self.block = ResBlock(channels, out_channels, emb, cfg.dropout)
        attends = size in cfg.attention_sizes
        self.attention = PixelAttention(out_channels, tokens, cfg.head_channels, cfg.attention) if attends else None

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
        x = self.block(x, emb)
        return x if self.attention is None else self.attention(x, tokens, keep)


def shrink(cfg: UNetCfg, channels: int, emb: int) -> nn.Module:
    """The layer between two levels on the way down."""
    if cfg.resample == "conv":
        return ConvDown(channels, cfg.conv_kernel)
    return WaveletDown(channels, emb, cfg.gate, cfg.gates)


def grow(cfg: UNetCfg, channels: int, out_channels: int, emb: int) -> nn.Module:
    """The layer between two levels on the way up."""
    if cfg.resample == "conv":
        return ConvUp(channels, out_channels, cfg.conv_kernel)
    return WaveletUp(channels, out_channels, emb, cfg.gates, cfg.band_skips)


def joined(stage: nn.Module, h: Tensor, skip: Tensor, *rest: Tensor) -> Tensor:
    """A stage of the way up: it sees h [B,C,H,W] and what the way down had at this size, [B,C',H,W]."""
    return stage(torch.cat([h, skip], dim=1), *rest)


class WaveletUNet(Backbone):
    """A UNet whose resampling layers are gated Haar transforms (see :mod:`models.wavelet`).

    ``latent_shape`` is (C, h, w); h and w must be multiples of ``cfg.factor`` (ConfigError otherwise), because every
    Haar level halves them exactly. ``text_features`` is the width of the frozen encoder's token states.
    """

    def __init__(self, cfg: UNetCfg, latent_shape: tuple[int, int, int], text_features: int, text_width: int) -> None:
        emb = 4 * cfg.width
        channels = [cfg.width * m for m in cfg.multipliers]
        super().__init__(cfg, emb, text_features, text_width, [channels[0], *channels[:-1]])
        latent_channels, height, width = latent_shape
        if height % cfg.factor or width % cfg.factor:
            raise ConfigError(
                f"the latent is {height}x{width}, but backbone.multipliers {cfg.multipliers} halves it "
                f"{len(cfg.multipliers) - 1} times: use fewer levels, or a data.image_size whose latent is a multiple "
                f"of {cfg.factor}"
            )
        self.factor = cfg.factor
        self.conv_in = nn.Conv2d(latent_channels, channels[0], 3, padding=1)

        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, current, size = [channels[0]], channels[0], height
        for level, wide in enumerate(channels):
            stages = nn.ModuleList()
            for _ in range(cfg.blocks):
                stages.append(Stage(cfg, current, wide, emb, text_width, size))
                current = wide
                skips.append(current)
            self.down.append(stages)
            if level + 1 < len(channels):
                self.shrink.append(shrink(cfg, current, emb))
                skips.append(current)
                size //= 2

        self.middle = Stage(cfg, current, current, emb, text_width, size)

        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, wide in reversed(list(enumerate(channels))):
            stages = nn.ModuleList()
            for _ in range(cfg.blocks + 1):
                stages.append(Stage(cfg, current + skips.pop(), wide, emb, text_width, size))
                current = wide
            self.up.append(stages)
            if level > 0:
                below = channels[level - 1]
                self.grow.append(grow(cfg, current, below, emb))
                current = below
                size *= 2

        self.norm_out = GroupNorm(current, act=True)
        self.conv_out = nn.Conv2d(current, latent_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]  # made with a bias

    def stages(self) -> dict[nn.Module, int]:
        every = [stage for stage in self.modules() if isinstance(stage, Stage)]  # down, middle, up
        return {stage: stage.block.conv2.out_channels for stage in every}

    def last_layers(self) -> list[nn.Module]:
        return [self.norm_out, self.conv_out]

    def forward(self, x: Tensor, t: Tensor, dt: Tensor, cond: Condition) -> Tensor:
        """x [B,C,h,w], t [B], dt [B], cond of B rows -> average velocity over [t, t+dt], [B,C,h,w] in fp32."""
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"the latent is {tuple(x.shape[-2:])}, but it must be a multiple of {self.factor}")
        emb, tokens, keep = self.embed(t, dt, cond)  # [B,E], [B,1+L,D], [B,1+L]

        hints = self.hints(cond, (x.shape[-2], x.shape[-1]))
        h = self.conv_in(x) if hints is None else self.conv_in(x) + hints[0]
        skips, seen = [h], []
        for level in range(len(self.down)):
            for stage in cast(nn.ModuleList, self.down[level]):
                h = self.run(stage, h, emb, tokens, keep)
                skips.append(h)
            if level < len(self.shrink):
                seen.append(h)
                h = self.run(self.shrink[level], h, emb)
                h = h if hints is None else h + hints[level + 1]
                skips.append(h)

        h = self.run(self.middle, h, emb, tokens, keep)

        for level in range(len(self.up)):
            for stage in cast(nn.ModuleList, self.up[level]):
                h = self.run(joined, stage, h, skips.pop(), emb, tokens, keep)
            if level < len(self.grow):
                h = self.run(self.grow[level], h, emb, seen.pop())
        return self.conv_out(self.norm_out(h)).float()
