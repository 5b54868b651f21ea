"""Squared error weighed by wavelet band: sum over bands b of w_b * mean over b of (Haar(answer) - Haar(wanted))^2.

The Haar transform is orthonormal, so with weights N_b/N ("parseval") this is the mean squared error itself, whatever
the number of levels (Parseval). Only other weights change anything: "uniform" counts every band alike and so favours
coarse shape (iSM, arXiv 2510.21250, averages its bands like this), "hf" favours detail, and "whiten" divides by the
variance that the wanted values have in the band (the wavelet form of the inverse spectrum in arXiv 2211.17106), where
each row is one, whatever it counts in the loss.
Weights sum to 1: an error that is white noise costs its variance under each of them.
"""

from typing import Literal

import torch
from torch import Tensor, distributed, nn

from configs.checks import ConfigError
from models.wavelet import haar

Weighting = Literal["parseval", "uniform", "hf", "whiten"]
SLOPE = 1.0  # of "hf": a level coarser, 2^-SLOPE times the weight per coefficient
MEMORY = 0.99  # of the running variances
FLOOR = 1e-4


def over_processes(value: Tensor) -> Tensor:
    """The mean of what all processes of a training have, in each of them; their batches are equally large."""
    if not distributed.is_available() or not distributed.is_initialized():
        return value
    distributed.all_reduce(value)
    return value / distributed.get_world_size()


class BandLoss(nn.Module):
    """Error of each row by bands of a Haar pyramid over the latent.

    Args:
        latent_shape: (C, h, w); h and w must be divisible by 2^levels (ConfigError otherwise).
        levels: depth of the pyramid.
        weighting: see above.
    """

    def __init__(self, latent_shape: tuple[int, int, int], levels: int, weighting: Weighting) -> None:
        super().__init__()
        _, height, width = latent_shape
        if height % 2**levels or width % 2**levels:
            raise ConfigError(
                f"sampler.band_levels is {levels}, but the latent is {height}x{width}: it must be divisible by "
                f"{2**levels}"
            )
        self.levels, self.weighting = levels, weighting
        share = torch.tensor([4.0**-level for level in range(1, levels + 1) for _ in range(3)] + [4.0**-levels])
        coarse = torch.tensor([2.0 ** (-SLOPE * level) for level in range(levels) for _ in range(3)]
                              + [2.0 ** (-SLOPE * levels)])
        fixed = {"parseval": share, "uniform": torch.ones_like(share), "hf": share * coarse}
        weights = fixed.get(weighting, share)
        self.register_buffer("weights", weights / weights.sum(), persistent=False)  # [3*levels + 1], finest first
        self.weights: Tensor
        if weighting == "whiten":
            self.register_buffer("variance", torch.ones_like(share))
            self.variance: Tensor

    def forward(self, answer: Tensor, wanted: Tensor) -> Tensor:
        """answer and wanted [B,C,h,w] -> [B], in fp32 or wider."""
        weights = self.weights
        if self.weighting == "whiten":
            if self.training:
                self.variance.lerp_(over_processes(self.powers(wanted.detach()).mean(0)).to(self.variance), 1 - MEMORY)
            weights = 1 / (self.variance + FLOOR)
            weights = weights / weights.sum()
        return self.powers(answer - wanted) @ weights.to(answer.dtype)

    def powers(self, x: Tensor) -> Tensor:
        """Mean square of each band of x [B,C,h,w]: [B, 3*levels + 1], LH, HL, HH from the finest level on, then LL."""
        found = []
        with torch.autocast(x.device.type, enabled=False):
            for _ in range(self.levels):
                x, *detail = haar(x).chunk(4, dim=1)
                found += detail
        return torch.stack([band.square().flatten(1).mean(1) for band in [*found, x]], dim=1)
