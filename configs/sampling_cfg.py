"""How a trained network is sampled: what generation and evaluation share."""

import math
from dataclasses import dataclass
from typing import Literal

from configs.checks import fraction, non_negative, one_of, require


@dataclass(frozen=True, kw_only=True)
class SamplingCfg:
    """The solver and its guidance; the number of steps is left to each command."""

    sampler: str = ""
    """Another sampler that the network can answer, such as heun, dpmpp, ddim, ddpm, restart; empty: the trained one."""
    eta: float | None = None
    """DDIM's noise (0: deterministic, 1: DDPM's); none: as trained."""
    shift: float = 1.0
    """Above 1, more of the regular steps lie near the noise, as suits large latents; 1: evenly spaced."""
    guidance: float = 1.0
    """Classifier-free guidance: 0 ignores the prompt, 1 follows it, above 1 exaggerates it."""
    guidance_from: float = 0.0
    """Guidance is 1 in steps that begin before this time (0: noise, 1: mask)."""
    guidance_to: float = 1.0
    """Guidance is 1 in steps that begin at this time or later; such steps cost half."""
    cfg_zero: bool = False
    """CFG-Zero*: scale the answer without prompt so that it is nearest to the one with it (flow, heun, dpmpp ...)."""
    zero_init: float = 0.0
    """CFG-Zero*: share of the first steps that leave the noise as it is, such as 0.04 (flow, heun, dpmpp ...)."""
    corrections: int | None = None
    """Steps in which the model's reader, if it has one, may correct masks whose prompts are captions of geometry, after
    the network's own, until they are what they are asked for; 0: masks as the network draws them; none: 20 where there
    is a reader."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32: a seed gives the same mask at any batch size; bf16: faster where the hardware has it, but a few pixels may
    differ."""

    def __post_init__(self) -> None:
        one_of("precision", self.precision, ("fp32", "bf16"))
        if self.eta is not None:
            fraction("eta", self.eta)
        require(math.isfinite(self.shift) and self.shift > 0, "shift", self.shift, "a positive number (1: none)")
        non_negative("guidance", self.guidance)
        if self.corrections is not None:
            non_negative("corrections", self.corrections)
        fraction("guidance_from", self.guidance_from)
        fraction("guidance_to", self.guidance_to)
        require(self.guidance_from < self.guidance_to, "guidance_from", self.guidance_from,
                f"below guidance_to ({self.guidance_to:g})")
        if (self.guidance_from, self.guidance_to) != (0, 1):
            require(self.guidance != 1, "guidance", self.guidance,
                    "another number, such as 2, for guidance_from and guidance_to to matter")
        fraction("zero_init", self.zero_init, below_one=True)
