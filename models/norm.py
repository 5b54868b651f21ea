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
        # For bf16, channels last, torch's own kernel takes longer on a CPU than a convolution of the same tensor.
        slow = input.device.type == "cpu" and input.dtype == torch.bfloat16 and not input.is_contiguous()
        wide = input.float() if slow else input
        h = F.group_norm(wide, self.num_groups, self.weight, self.bias, self.eps).to(input.dtype)
        if scale is not None and shift is not None:
            h = torch.addcmul(shift[:, :, None, None], h, 1 + scale[:, :, None, None])
        return F.silu(h) if self.act else h
