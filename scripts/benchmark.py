"""Cost of objectives side by side: ``python -m scripts.benchmark [PRESET]`` prints ratios to plain flow matching.

Each repeat times every objective once, in turn, so that a slow moment of the machine hits all of them; a whole training
step is timed (loss, backward, clipping, AdamW, averages), with the same network and the same batch.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from configs.autoencoder_cfg import Stage1Cfg
from configs.bakeoffs import Entrant
from configs.cli import parse_preset
from configs.diffusion_cfg import Stage2Cfg
from configs.presets import STAGE_1, STAGE_2
from configs.sampler_cfg import FlowCfg, Sampler, ShortcutCfg

REPEATS = 15


def objectives(cfg: Stage2Cfg, stage_1: Stage1Cfg) -> dict[str, Entrant]:
    """What is compared; the first is the unit."""
    samplers: dict[str, Sampler] = {"plain flow matching": FlowCfg()}
    samplers[f"{type(cfg.sampler).__name__} of the preset"] = cfg.sampler
    samplers["ShortcutCfg, a quarter of every batch"] = ShortcutCfg(share=0.25, every=1)
    return {name: Entrant(replace(cfg, sampler=sampler), stage_1) for name, sampler in samplers.items()}


def step_times(entrants: dict[str, Entrant]) -> dict[str, list[float]]:
    """Seconds per training step of each entrant, one number per repeat."""
    import torch

    from models.hardware import bf16_is_fast

    dtype = "bf16" if bf16_is_fast("cpu") else "fp32"
    print(f"timing: {torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}", flush=True)
    steps = {name: stepper(entrant, dtype == "bf16") for name, entrant in entrants.items()}
    for step in steps.values():  # warm up
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(REPEATS):
        for name, step in steps.items():
            times[name].append(step())
    return times


def stepper(entrant: Entrant, bf16: bool) -> Callable[[], float]:
    """Seconds of one training step of an entrant, on average over a whole training, from a few steps of each kind."""
    import torch

    from autoencoder import AutoencoderModule
    from diffusion import DiffusionModule
    from models.ema import ema_update_
    from models.optim import build_optimizer
    from samplers import When

    cfg = entrant.stage_2
    torch.manual_seed(0)
    module = DiffusionModule(cfg, AutoencoderModule(entrant.stage_1)).train()
    optimizer = build_optimizer(module.net, cfg.optim, cfg.train.max_steps)["optimizer"]
    x1 = torch.randn(cfg.data.batch_size, *module.latent_shape)
    cond = module.encode_text(["a giraffe"] * len(x1))

    def seconds(when: When) -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = module.sampler.loss(
                module.net, x1, cond, teacher=module.teacher, when=when, measure=module.measure,
                perceptual=module.autoencoder.perceptual_error,
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.net.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        ema_update_(module.average, module.net, 0.999)
        ema_update_(module.teacher, module.net, 0.95)
        return time.perf_counter() - began

    return lambda: mean_over_training(cfg.sampler, seconds)


def mean_over_training(sampler: Sampler, seconds: Callable[[Any], float]) -> float:
    """Mean of ``seconds(when)`` over a training: what it is before self-consistency begins, and a cycle of it after."""
    from samplers import When

    every, begin = getattr(sampler, "every", 1), getattr(sampler, "begin", 0.0)
    numbers = range(max(4, every) // every * every)  # whole cycles, of four steps or more
    late = statistics.mean(seconds(When(number, 1.0)) for number in numbers)
    early = statistics.mean(seconds(When(number, 0.0)) for number in range(2)) if begin else 0.0
    return begin * early + (1 - begin) * late


def main(argv: list[str] | None = None) -> None:
    name, cfg = parse_preset(STAGE_2, sys.argv[1:] if argv is None else argv, "python -m scripts.benchmark")
    stage_1 = replace(STAGE_1[name](), data=cfg.data)
    times = step_times(objectives(cfg, stage_1))
    unit = next(iter(times.values()))
    print(f"{'objective':40} {'s/step':>8} {'ratio':>7}   lowest to highest of {REPEATS} interleaved repeats")
    for objective, seconds in times.items():
        ratios = [own / base for own, base in zip(seconds, unit, strict=True)]
        print(
            f"{objective:40} {statistics.median(seconds):8.4f} {statistics.median(ratios):7.3f}"
            f"   {min(ratios):.3f} to {max(ratios):.3f}"
        )


if __name__ == "__main__":
    main()
