"""The 3x3 convolution of the blocks, by what is faster on a CPU for as few pixels as latents have."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from models import winograd
from models.folded import Folded

FEW = 16
"""Up to so many pixels, bfloat16 gradients of filters are faster as a convolution than as torch has them."""


class Conv3x3(Folded, nn.Conv2d):
    """A 3x3 convolution, padded with zeros, whose output has the size of its input.

    Of two by two pixels each sees all others, through four of the nine taps: one product of matrices, [4C',4C] with
    [4C], answers the same with 16 in the place of 36 products a pair of channels. Between many channels in fp32,
    Winograd's way answers the same, but for rounding, with a quarter of the products (models/winograd.py).
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """input [B,C,H,W] -> [B,C',H,W]."""
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        if max(input.shape[2:]) <= 2:
            return self.as_one_product(input, cast)
        if cast == torch.bfloat16 and input.shape[2:].numel() <= FEW and torch.is_grad_enabled():
            bias = None if self.bias is None else self.bias.to(cast)
            answer: Tensor = FewPixels.apply(input.to(cast), self.weight.to(cast), bias)
            return answer
        if cast.itemsize >= 4 and winograd.pays(input, self.out_channels):
            filters = self.folded(input, lambda: winograd.tile_filters(self.weight))
            return winograd.by_tiles(input, filters, self.bias)
        return super().forward(input)

    def as_one_product(self, x: Tensor, cast: torch.dtype) -> Tensor:
        """x [B,C,H,W] of at most two by two pixels -> [B,C',H,W] in the same memory format."""
        rows, channels, height, width = x.shape

        def fold() -> tuple[Tensor, Tensor | None]:
            taps = self.weight.to(cast).permute(0, 2, 3, 1)  # [C',3,3,C]; pixel (y, x) sees all from (1 - y, 1 - x) on
            seen = [taps[:, 1 - y : 1 - y + height, 1 - x : 1 - x + width] for y in range(height) for x in range(width)]
            filters = torch.stack(seen).view(height * width * self.out_channels, -1)  # [HWC',HWC]
            return filters, None if self.bias is None else self.bias.repeat(height * width)

        filters, bias = self.folded(x, fold)
        y = F.linear(x.permute(0, 2, 3, 1).reshape(rows, height * width * channels), filters, bias)  # [B,HWC']
        image = y.view(rows, height, width, self.out_channels).permute(0, 3, 1, 2)
        return image.contiguous() if x.is_contiguous() else image


class FewPixels(torch.autograd.Function):
    """A 3x3 convolution whose filters' gradient is one, too: of the input by the output's gradient, rows as channels.

    torch's own takes 1.2 to twice the time there in bfloat16, more than the rest of forward and backward pass together.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if by_x:
            grad_x = conv2d_input(x.shape, weight, grad, padding=1)
        if by_weight:
            grad_weight = F.conv2d(x.transpose(0, 1), grad.transpose(0, 1), padding=1).transpose(0, 1)
        if by_bias:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias
