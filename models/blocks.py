"""The residual block and the time embedding."""

import math

import torch
from torch import Tensor, nn

from models.conv import Conv3x3
from models.norm import GroupNorm


class NumberEmbedding(nn.Module):
    """Sinusoids of a number in [0, 1], then a small MLP.

    Angles run from 1 to ``fastest`` radians per unit. At 1000, 0 and 1/128 are far apart (without a scale they
    coincide); a derivative in the number grows with it.
    """

    def __init__(self, channels: int, fastest: float = 1000.0, features: int = 128) -> None:
        super().__init__()
        # Not linspace: loading a text encoder makes torch.device forget that one, so it would ignore "meta".
        rates = torch.exp(torch.arange(features // 2) * (math.log(fastest) / (features // 2 - 1)))
        self.register_buffer("rates", rates, persistent=False)
        self.rates: Tensor
        self.mlp = nn.Sequential(nn.Linear(features, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, number: Tensor) -> Tensor:
        """number [B] -> [B,channels]."""
        angles = number.float()[:, None] * self.rates  # [B,features/2]
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


class ResBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts the second norm; starts as its skip connection.

    ``emb_channels=0`` leaves the modulation out (the VAE's blocks).
    """

    def __init__(self, channels: int, out_channels: int, emb_channels: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels, act=True)
        self.conv1 = Conv3x3(channels, out_channels)
        self.modulation = nn.Linear(emb_channels, 2 * out_channels) if emb_channels else None
        self.norm2 = GroupNorm(out_channels, act=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        if self.conv2.bias is not None:
            nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """x [B,C,H,W], emb [B,E] -> [B,C',H,W]."""
        h = self.conv1(self.norm1(x))
        if self.modulation is not None and emb is not None:
            h = self.norm2(h, *self.modulation(emb).chunk(2, dim=1))
        else:
            h = self.norm2(h)
        return self.skip(x) + self.conv2(self.dropout(h))
