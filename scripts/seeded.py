"""Masks from seeds: every mask has a random stream of its own, so that it depends on no other mask of its batch.

The noise of a mask is therefore the same at any batch size. Its probabilities are not quite: kernels add in another
order for another batch size, which moves them by about 1e-6. A mask with a pixel that close to the threshold could come
out differently, so ``decided`` draws such a mask again, alone, and takes that answer at every batch size.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from configs.checks import ConfigError
from configs.sampling_cfg import SamplingCfg
from samplers import Guidance, SamplerMismatch, Solver, sampler_for

DOUBT = 1e-4
"""Distance from the threshold within which a pixel is drawn again: rounding moves a probability by some 1e-6."""


@dataclass(frozen=True)
class Recipe:
    """How noise becomes a mask."""

    sampler: Solver
    steps: int
    times: tuple[float, ...] | None = None
    """Irregular steps; ``steps`` is then their number."""
    guidance: Guidance = field(default_factory=Guidance)
    shift: float = 1.0


def build_sampler_for(trained: Any, name: str, eta: float | None = None) -> Solver:
    """The sampler ``name`` (empty: the trained one) for a network trained under ``trained``.

    Raises:
        SamplerMismatch: the network cannot answer what this sampler asks.
        ConfigError: an unknown name, or an eta where there is none.
    """
    try:
        return sampler_for(trained, name or None, **({} if eta is None else {"eta": eta}))
    except SamplerMismatch:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def recipes(
    sampler: Solver, steps: Sequence[int], times: tuple[float, ...] | None, cfg: SamplingCfg
) -> list[Recipe]:
    """One recipe per step count; without any, the sampler's own number, or the given times.

    Raises:
        ConfigError: a step count, times or guidance that this sampler cannot take.
    """
    guidance = Guidance(cfg.guidance, cfg.guidance_from, cfg.guidance_to, cfg.cfg_zero, cfg.zero_init)
    try:
        sampler.check(guidance)
        if times is not None:
            sampler.irregular(times)
            return [Recipe(sampler, len(times) - 1, times, guidance)]
        counts = list(steps) or [sampler.cfg.steps]
        for count in counts:
            sampler.times(count, cfg.shift)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return [Recipe(sampler, count, None, guidance, cfg.shift) for count in counts]


def choose_device(accelerator: str) -> torch.device:
    """This process's device. Raises ConfigError when a GPU is asked for and there is none."""
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("accelerator is 'gpu', but torch sees no GPU here: leave it at auto, or take cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def streams(seeds: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A source of noise like an [B,...] tensor, whose row i comes from a CPU generator seeded with ``seeds[i]``."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def randn(like: Tensor) -> Tensor:
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
        return torch.stack(rows).to(like)

    return randn


def draw(module: Any, prompts: Sequence[str], seeds: Sequence[int], recipe: Recipe, device: torch.device) -> Tensor:
    """Probabilities [B,C,H,W], fp32 on the CPU, of one batch: prompt i with the random stream of seed i."""
    randn = streams(seeds)
    noise = randn(torch.empty(len(seeds), *module.latent_shape, device=device))
    # TF32 keeps ten bits of a product: rounding would then exceed DOUBT.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        p = module.generate(
            list(prompts), noise, sampler=recipe.sampler, steps=None if recipe.times else recipe.steps,
            times=recipe.times, shift=recipe.shift, guidance=recipe.guidance, randn=randn,
        )
    return p.float().cpu()


def decided(
    module: Any, prompts: Sequence[str], seeds: Sequence[int], recipe: Recipe, device: torch.device, *, threshold: float
) -> list[Tensor]:
    """Probabilities [C,H,W] of one batch's masks; thresholded, a mask is the same in any batch.

    Ordinary images (C = 3) are not drawn again: theirs can differ by one grey level.
    """
    drawn = draw(module, prompts, seeds, recipe, device)
    masks = list(drawn)
    if len(masks) > 1 and drawn.shape[1] == 1:
        for row in ((drawn - threshold).abs() < DOUBT).flatten(1).any(1).nonzero().flatten().tolist():
            masks[row] = draw(module, prompts[row : row + 1], seeds[row : row + 1], recipe, device)[0]
    return masks
