"""Group normalisation with the scale and shift of a condition and the nonlinearity, as all networks here use it."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NARROW = 8
"""Channels of a group from which on torch's kernel for channels last is fast on a CPU."""
PIXELS = range(16, 1024)
"""Pixels with which it is slow for groups that are narrower."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018, arXiv 1803.08494), then a scale and shift per row, then SiLU if ``act``."""

    def __init__(self, channels: int, act: bool = False) -> None:
        """``channels``: at most 32 groups of at least 4 of them, all alike."""
        most = max(1, min(32, channels // 4))
        super().__init__(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)
        self.act = act

    def forward(self, input: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """input [B,C,H,W], scale and shift [B,C] -> silu(normalised * (1 + scale) + shift), [B,C,H,W]."""
        on_cpu = input.device.type == "cpu" and not torch.compiler.is_compiling()
        channels_last = on_cpu and input.stride(1) == 1 and not input.is_contiguous()
        if channels_last and scale is not None and shift is not None:
            scale, shift = wide(scale), wide(shift)
        if channels_last and self.num_channels < NARROW * self.num_groups and input.shape[2:].numel() in PIXELS:
            weight: Tensor = self.weight
            bias: Tensor = self.bias
            if scale is not None and shift is not None:
                weight, bias = weight * (1 + scale), torch.addcmul(shift, bias, 1 + scale)
            answer: Tensor = NormBySums.apply(input, weight, bias, self.num_groups, self.eps, self.act)
            return answer
        if channels_last:  # for bf16, torch's own kernel takes longer on a CPU than a convolution of the same tensor
            h = F.group_norm(wide(input), self.num_groups, self.weight, self.bias, self.eps)
        else:
            h = F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps).to(input.dtype)
        if scale is not None and shift is not None:
            h = torch.addcmul(shift[:, :, None, None], h, 1 + scale[:, :, None, None])
        return (F.silu(h) if self.act else h).to(input.dtype)


class NormBySums(torch.autograd.Function):
    """Group normalisation of an image in channels last, from its sums over pixels.

    Computed in fp32, or more: x [B,C,H,W], weight and bias [C] or [B,C] -> [B,C,H,W]; SiLU if ``act``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, act: bool) -> Tensor:
        v = pixels(x)
        rows, count, channels = v.shape
        moments = torch.stack([v.sum(1), (v * v).sum(1)]).view(2, rows, groups, channels // groups).sum(3, keepdim=True)
        mean, power = moments.div_(count * channels // groups)  # [B,G,1] each
        rate = torch.addcmul(power, mean, mean, value=-1).clamp_min_(0).add_(eps).rsqrt_()
        by = rate * grouped(weight, groups)  # [B,G,C/G]
        plus = torch.addcmul(grouped(bias, groups), mean, by, value=-1)
        by, plus = by.view(rows, 1, channels), plus.view(rows, 1, channels)
        ctx.save_for_backward(x, weight, mean, rate, by, plus)
        ctx.groups, ctx.act = groups, act
        y = torch.addcmul(plus, v, by)
        return image(F.silu(y, inplace=True) if act else y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rate, by, plus = ctx.saved_tensors
        v, g = pixels(x), pixels(grad)
        rows, count, channels = v.shape
        size = count * channels // ctx.groups
        if ctx.act:
            g = torch.ops.aten.silu_backward(g, torch.addcmul(plus, v, by))
        by_bias = grouped(g.sum(1), ctx.groups)  # [B,G,C/G]
        by_weight = torch.addcmul(grouped((g * v).sum(1), ctx.groups), by_bias, mean, value=-1) * rate
        weights = grouped(weight, ctx.groups)
        along = (weights * by_weight).sum(2, keepdim=True) * rate * rate / -size  # [B,G,1]: x's part in its gradient
        always = (weights * by_bias).sum(2, keepdim=True) * rate / -size - along * mean

        def spread(y: Tensor) -> Tensor:
            return y.expand(by_bias.shape).reshape(rows, 1, channels)

        grad_x = torch.addcmul(spread(always), v, spread(along)).addcmul_(g, by)
        grad_weight, grad_bias = by_weight.view(rows, channels), by_bias.view(rows, channels)
        if weight.dim() == 1:
            grad_weight, grad_bias = grad_weight.sum(0), grad_bias.sum(0)
        return image(grad_x, x), grad_weight, grad_bias, None, None, None


def wide(x: Tensor) -> Tensor:
    """In fp32, or more where x is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pixels(x: Tensor) -> Tensor:
    """x [B,C,H,W] -> [B,HW,C], wide."""
    rows, channels, height, width = x.shape
    return wide(x).permute(0, 2, 3, 1).reshape(rows, height * width, channels)


def image(v: Tensor, like: Tensor) -> Tensor:
    """v [B,HW,C] -> [B,C,H,W] in channels last, in the number format of ``like`` [B,C,H,W]."""
    rows, channels, height, width = like.shape
    return v.to(like.dtype).view(rows, height, width, channels).permute(0, 3, 1, 2)


def grouped(y: Tensor, groups: int) -> Tensor:
    """y [...,C] -> [B,G,C/G] (B is 1 for what all rows share)."""
    return y.reshape(math.prod(y.shape[:-1]), groups, y.shape[-1] // groups)
