"""Derivatives of a network along a direction, by finite differences in fp32.

bf16 keeps 8 bits: over a distance of 0.01 its rounding alone would be 40 % of the derivative, that of TF32 a few.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from samplers.net import spread


def difference(
    at: Callable[[Tensor], Tensor], probe: float, before: Tensor, after: Tensor, device: torch.device
) -> Tensor:
    """d/ds of ``at(s)`` at s = 0: [B,C,h,w].

    Args:
        at: the network's answers [B,C,h,w] at offsets s [B], called with autocast off.
        probe: distance of the two probes from s = 0.
        before: how far each row can go back [B]; at a border the difference is one-sided.
        after: how far each row can go on [B]; before + after must be above 0.
        device: where the network runs.
    """
    low, high = -before.clamp(max=probe), after.clamp(max=probe)
    cudnn = torch.backends.cudnn
    exact = cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), exact:
        ahead, behind = at(high), at(low)
    return (ahead - behind) / spread(high - low, ahead)
