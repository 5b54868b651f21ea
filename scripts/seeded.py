"""Masks from seeds: every mask has a random stream of its own, so that it depends on no other mask of its batch.

The noise of a mask is therefore the same at any batch size. Its probabilities are not quite: kernels add in another
order for another batch size, and the networks make more of that rounding. A mask with a pixel that close to the
threshold could come out differently, so ``decided`` draws such a mask again, alone, and takes that answer at every
batch size. Where a reader corrects masks, it draws them alone at once.
"""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from configs.checks import ConfigError
from configs.sampling_cfg import SamplingCfg
from samplers import Guidance, SamplerMismatch, Solver, sampler_for
from samplers.between import noise_between

if TYPE_CHECKING:
    from samplers.generates import Edit

WORDS = 4
"""Words of a caption of geometry."""
CORRECTIONS = 20
"""Steps in which a reader may correct such a mask, unless another number is asked for; most take none to four."""
TRIES = 16
"""Of a mask whose prompt says what can be counted in it, unless another number is asked for."""
FURTHER = 0x9E3779B1
"""From one try's seed to the next one's; torch's CPU generators see only 32 bits of a seed."""
DOUBT = 3e-4
"""Distance from the threshold within which a pixel is drawn again, for each step: another batch size was seen to move
probabilities near it by 2.7e-4 in one step (icons256, icons, with Winograd's products and without), 6.5e-4 in four,
1e-3 in sixteen that are guided four times as strongly."""
MOST = 4
"""Steps that count for this; more would have most masks drawn again."""


@dataclass(frozen=True)
class Recipe:
    """How noise becomes a mask."""

    sampler: Solver
    steps: int
    times: tuple[float, ...] | None = None
    """Irregular steps; ``steps`` is then their number."""
    guidance: Guidance = field(default_factory=Guidance)
    shift: float = 1.0
    negative: str = ""
    """Prompt that guidance leads away from."""
    to_prompt: str | None = None
    """Where the way of ``blends`` ends (see ``draw``); None: at the prompt that it starts from."""
    to_seed: int | None = None
    """The same for the seed."""
    edit: "Edit | None" = None
    """A given mask to start from or to keep part of."""
    sketch: Tensor | None = None
    """What the masks should follow beside their prompts: [1,1,H,W] for all of them, or one each [B,1,H,W]."""
    corrections: int = 0
    """Steps in which the model's reader may correct a mask until it is what its caption of geometry says."""
    tries: int = 1
    """Draw a mask that is not what its caption of geometry says anew, from other seeds, until so many were drawn."""
    threshold: float = 0.5
    """Pixels above this probability are the mask."""
    bf16: bool = False
    """Whether the networks run in bfloat16; masks may then differ in a few pixels with the batch they are drawn in."""


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
    sampler: Solver, steps: Sequence[int], times: tuple[float, ...] | None, cfg: SamplingCfg, **further: Any
) -> list[Recipe]:
    """One recipe per step count; without any, the sampler's own number, or the given times.

    ``further`` are other fields of the recipes.

    Raises:
        ConfigError: a step count, times or guidance that this sampler cannot take, or an option that would change no
            mask at any of the step counts.
    """
    guidance = Guidance(cfg.guidance, cfg.guidance_from, cfg.guidance_to, cfg.cfg_zero, cfg.zero_init)
    further |= {"bf16": cfg.precision == "bf16"}
    edit = further.get("edit")
    start, away = 1 - edit.strength if edit else 0.0, bool(further.get("negative"))
    try:
        sampler.check(guidance)
        if times is not None:
            require_effect(sampler, guidance, [sampler.grid(None, times, start=start)], away)
            return [Recipe(sampler, len(times) - 1, times, guidance, **further)]
        counts = list(steps) or [sampler.cfg.steps]
        require_effect(sampler, guidance, [sampler.grid(count, None, cfg.shift, start) for count in counts], away)
        if cfg.shift != 1 and set(counts) == {1}:
            raise ConfigError(f"shift is {cfg.shift:g}, but a single step has no times between noise and mask to move: "
                              "ask for more steps, or leave it at 1")  # fmt: skip
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return [Recipe(sampler, count, None, guidance, cfg.shift, **further) for count in counts]


def require_effect(sampler: Solver, guidance: Guidance, grids: Sequence[Tensor], away: bool) -> None:
    """Raises ConfigError where an option of ``guidance`` would change no mask on any of the ``grids`` [n] of times.

    ``away``: guidance leads away from a prompt (``Recipe.negative``).
    """
    require_still_steps(guidance, [len(grid) - 1 for grid in grids])
    moving = [grid.tolist()[guidance.still_steps(len(grid) - 1) :] for grid in grids]
    steps = [step for times in moving for step in pairwise(times)]
    if (guidance.start, guidance.stop) != (0, 1) and not any(guidance.inside(t) for t, _ in steps):
        nearest = min((t for t, _ in steps), key=lambda t: max(guidance.start - t, t - guidance.stop))
        raise ConfigError(
            f"guidance_from is {guidance.start:g} and guidance_to is {guidance.stop:g}, but no step begins between "
            f"them, so that guidance would change nothing: take in the nearest, which begins at {nearest:g}, or ask "
            "for more steps"
        )
    # What Guided is given as its scale, which does nothing at 1; away from a prompt, cfg_zero is applied to that alone.
    scales = (guidance.at(t) if away else sampler.scale(guidance.at(t), t, s) for t, s in steps)
    if guidance.cfg_zero and all(scale == 1 for scale in scales):
        raise ConfigError("cfg_zero is on, but it corrects guidance, which comes to 1 in every step and so does "
                          "nothing here: ask for more guidance, such as 2, or turn it off")  # fmt: skip


def require_still_steps(guidance: Guidance, counts: Sequence[int]) -> None:
    """Raises ConfigError where ``zero_init`` is so small a share that it would change no mask at any step count."""
    if guidance.zero_init > 0 and not any(guidance.still_steps(count) for count in counts):
        most = max(counts)
        raise ConfigError(
            f"zero_init is {guidance.zero_init:g}, but the first of {most} steps is a larger share: ask for "
            f"{math.ceil(1000 / most) / 1000:g} or more, or for {math.ceil(1 / guidance.zero_init - 1e-9)} steps or "
            "more"
        )


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


def blended(first: Sequence[int], to_seed: int | None, blends: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """The same, with row i ``blends[i]`` of the way to the stream of ``to_seed`` (see ``noise_between``).

    A row whose own seed that is stays there: the sum of a stream and itself would be larger than noise is.
    """
    near = streams(first)
    if to_seed is None:
        return near
    gone = [0.0 if seed == to_seed else blend for seed, blend in zip(first, blends, strict=True)]
    far, weight = streams([to_seed] * len(first)), torch.tensor(gone, dtype=torch.float64)
    return lambda like: noise_between(near(like), far(like), weight)


def draw(
    module: Any, prompts: Sequence[str], seeds: Sequence[int], recipe: Recipe, device: torch.device,
    blends: Sequence[float] = (),
) -> Tensor:
    """Probabilities [B,C,H,W], fp32 on the CPU, of one batch: prompt i with the random stream of seed i.

    Where the recipe leads to another prompt or seed, row i stands ``blends[i]`` of the way there.
    """
    randn = blended(seeds, recipe.to_seed, blends)
    noise = randn(torch.empty(len(seeds), *module.latent_shape, device=device))
    how: dict[str, Any] = {}
    if recipe.negative:
        how["negative"] = recipe.negative
    if recipe.to_prompt is not None:
        how["towards"] = recipe.to_prompt, torch.tensor(blends, dtype=torch.float64)
    if recipe.edit is not None:
        how["edit"] = recipe.edit
    if recipe.sketch is not None:
        how["sketch"] = recipe.sketch
    if recipe.corrections:
        from metrics.geometry import describe, numbers
        from metrics.grammar import parse
        from samplers.generates import Correction

        words = numbers([parse(prompt) for prompt in prompts])
        how["correct"] = Correction(
            words, recipe.corrections, lambda _, p: numbers(describe(p.float().cpu() > recipe.threshold))
        )
    # TF32 keeps ten bits of a product: rounding would then exceed DOUBT.
    # The flags are those of the whole process, and on a CPU several threads may draw.
    exact = nullcontext() if device.type == "cpu" else torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), exact, torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
        p = module.generate(
            list(prompts), noise, sampler=recipe.sampler, steps=None if recipe.times else recipe.steps,
            times=recipe.times, shift=recipe.shift, guidance=recipe.guidance, randn=randn, **how,
        )
    return p.float().cpu()


def useful_corrections(corrections: int | None, prompts: Sequence[str], module: Any) -> int:
    """``corrections``, or in the place of None as many as help. Raises ConfigError for some that could change nothing.
    """
    from metrics.grammar import parse

    known = any(parse(prompt) for prompt in prompts)
    if corrections is None:
        return CORRECTIONS if module.reader is not None and known else 0
    if corrections and module.reader is None:
        raise ConfigError(f"corrections is {corrections}, but this model has no reader to correct by: leave it out, or "
                          "train one with --init MODEL --reader.width 64 --reader.only True")  # fmt: skip
    if corrections and not known:
        raise ConfigError(f"corrections is {corrections}, but a mask is only corrected where a prompt says what can be "
                          'counted in it, such as "two small round blobs, top": leave it out')  # fmt: skip
    return corrections


def useful_tries(tries: int, prompts: Sequence[str], channels: int) -> int:
    """``tries``, or in the place of 0 as many as help. Raises ConfigError for more than one that could change nothing.
    """
    from metrics.grammar import parse

    known = channels == 1 and any(parse(prompt) for prompt in prompts)
    if tries == 0:
        return TRIES if known else 1
    if tries > 1 and not known:
        raise ConfigError(f"tries is {tries}, but a mask is only drawn anew where a prompt says what can be counted in "
                          'it, such as "two small round blobs, top": leave it at 1')  # fmt: skip
    return tries


def followed(
    tries: int, prompts: Sequence[str], seeds: Sequence[int], threshold: float,
    once: Callable[[Sequence[int], Sequence[int]], Sequence[Tensor]],
) -> list[Tensor]:
    """The best of up to ``tries`` masks for each prompt: that with most words of its caption right, else the first.

    ``once(rows, seeds)`` draws these rows' probabilities [C,H,W]; each try has another seed. Prompts that are no
    captions of geometry are drawn once.
    """
    masks = list(once(range(len(prompts)), seeds))
    if tries == 1:
        return masks
    from metrics.geometry import right_words

    def right(rows: Sequence[int], drawn: Sequence[Tensor]) -> dict[int, int]:
        found = right_words(torch.stack([p[0] > threshold for p in drawn]), [prompts[row] for row in rows])
        return {rows[i]: sum(words) for i, words in found.items()}

    best = right(range(len(prompts)), masks)
    for j in range(1, tries):
        rows = [row for row, words in best.items() if words < WORDS]
        if not rows:
            break
        again = once(rows, [(seeds[row] + j * FURTHER) % 2**32 for row in rows])
        for row, p, words in zip(rows, again, right(rows, again).values(), strict=True):
            if words > best[row]:
                masks[row], best[row] = p, words
    return masks


def decided(
    module: Any, prompts: Sequence[str], seeds: Sequence[int], recipe: Recipe, device: torch.device,
    blends: Sequence[float] = (),
) -> list[Tensor]:
    """Probabilities [C,H,W] of one batch's masks (see ``draw``); thresholded, a mask is the same in any batch.

    Ordinary images (C = 3) are not drawn again: theirs can differ by one grey level. Nor is anything in bf16. Masks
    that a reader may correct are each drawn alone.
    """
    from metrics.grammar import parse

    def once(rows: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        def some(numbers: Sequence[int]) -> list[Tensor]:
            asked = [prompts[rows[i]] for i in numbers]
            on_way = [blends[rows[i]] for i in numbers] if blends else []
            return list(draw(module, asked, [seeds[i] for i in numbers], recipe, device, on_way))

        exact = len(rows) > 1 and not recipe.bf16
        doubt = DOUBT * min(MOST, recipe.steps * max(1.0, float(recipe.guidance.scale)))
        # What a reader does next turns on what a mask shows, and it makes ten to a thousand times as much of rounding.
        alone = [i for i, row in enumerate(rows) if exact and recipe.corrections and parse(prompts[row])]
        shared = [i for i in range(len(rows)) if i not in alone]
        masks = dict(zip(shared, some(shared) if shared else [], strict=True))
        if exact:
            alone += [i for i, p in masks.items() if len(p) == 1 and ((p - recipe.threshold).abs() < doubt).any()]
        masks |= {i: some([i])[0] for i in alone}
        if not all(p.isfinite().all() for p in masks.values()):
            raise ConfigError(f"what was drawn holds no finite numbers: guidance is {recipe.guidance.scale:g}; ask for "
                              "less, or see whether the model was trained to its end")  # fmt: skip
        return [masks[i] for i in range(len(rows))]

    return followed(recipe.tries, prompts, seeds, recipe.threshold, once)
