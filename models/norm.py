"""Group normalisation, modulation and SiLU in a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018, arXiv 1803.08494), then a scale and shift per row, then SiLU if ``act``."""

    def __init__(self, channels: int, act: bool = False) -> None:
        """``channels``: at most 32 groups of at least 4 of them, all alike."""
        most = max(1, min(32, channels // 4))
        super().__init__(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)
        self.act = act

    def forward(self, input: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """input [B,C,H,W], scale and shift [B,C] -> silu(normalised * (1 + scale) + shift), [B,C,H,W]."""
        cpu = input.device.type == "cpu" and input.dtype == torch.bfloat16
        if cpu and not input.is_contiguous() and not torch.is_grad_enabled():
            return self.by_channels(input, scale, shift)
        h = F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        if scale is not None and shift is not None:
            h = torch.addcmul(shift[:, :, None, None], h, 1 + scale[:, :, None, None])
        return F.silu(h) if self.act else h

    def by_channels(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """The same as one product and one sum per channel, in fp32.

        For bf16, channels last, torch's own kernel takes longer on a CPU than a convolution of the same tensor.
        """
        wide = x.float()
        wide -= self.of_groups(wide.mean((2, 3)))
        gain = self.of_groups((wide * wide).mean((2, 3))).add(self.eps).rsqrt()[:, :, 0, 0] * self.weight
        bias = self.bias.expand_as(gain)
        if scale is not None and shift is not None:
            gain, bias = gain * (1 + scale), torch.addcmul(shift, bias, 1 + scale)
        h = torch.addcmul(bias[:, :, None, None], wide, gain[:, :, None, None], out=wide)  # new memory costs as much
        return (F.silu(h, inplace=True) if self.act else h).to(x.dtype)

    def of_groups(self, per_channel: Tensor) -> Tensor:
        """[B,C] -> the mean of each channel's group, [B,C,1,1]."""
        means = per_channel.unflatten(1, (self.num_groups, -1)).mean(2, keepdim=True)
        return means.expand(-1, -1, per_channel.shape[1] // self.num_groups).flatten(1)[:, :, None, None]
