"""How fast this project is on this machine: ``python -m scripts.benchmark [PRESET] [--quick] [--json PATH]``.

Every comparison is a ratio of two things that run in turn, several times: the median, the lowest and the highest are
printed, beside the goal where there is one.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from configs.autoencoder_cfg import Stage1Cfg
from configs.bakeoffs import Entrant
from configs.benchmark_cfg import PARTS, BenchmarkCfg
from configs.cli import parse
from configs.diffusion_cfg import Stage2Cfg
from configs.presets import STAGE_1, STAGE_2
from configs.sampler_cfg import FlowCfg, Sampler, ShortcutCfg
from scripts.run import refuse_kindly

REPEATS = 15
SHM, ROOM = "/dev/shm", 2**24
"""Linux's file system in memory, and the bytes that must be free there for each repeat."""
LONGEST = 180.0
"""Seconds that timing the steps of a bakeoff may take, unless three repeats take longer."""


def objectives(cfg: Stage2Cfg, stage_1: Stage1Cfg) -> dict[str, Entrant]:
    """What is compared; the first is the unit."""
    paper = ShortcutCfg(share=0.25, every=1)
    samplers: dict[str, Sampler] = {"flow": FlowCfg(), "default": cfg.sampler, "paper": paper}
    return {name: Entrant(replace(cfg, sampler=sampler), stage_1) for name, sampler in samplers.items()}


def step_times(entrants: dict[str, Entrant]) -> dict[str, list[float]]:
    """Seconds per training step of each entrant where trainings run by default, one number per repeat."""
    import torch

    from models.hardware import bf16_is_fast
    from scripts.benchmarks.report import interleaved
    from scripts.seeded import choose_device

    device = choose_device("auto")
    bf16 = bf16_is_fast(device.type)
    dtype = "bf16" if bf16 else "fp32"
    print(f"timing: {device}, {torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}", flush=True)
    steppers = {name: stepper(entrant, bf16, device) for name, entrant in entrants.items()}
    return interleaved(steppers, REPEATS, LONGEST)


def stepper(entrant: Entrant, bf16: bool, device: Any) -> Callable[[], float]:
    """Seconds of one training step of an entrant, on average over a whole training, from a few steps of each kind."""
    from scripts.benchmarks.report import elapsed
    from scripts.benchmarks.step import stage_2_step

    step = stage_2_step(entrant.stage_2, entrant.stage_1, bf16=bf16, device=device, layout="auto")
    return lambda: mean_over_training(
        entrant.stage_2.sampler, lambda when: elapsed(lambda: step(when), device)
    )


def mean_over_training(sampler: Sampler, seconds: Callable[[Any], float]) -> float:
    """Mean of ``seconds(when)`` over a training: a cycle of steps of each of its phases, weighed by their lengths."""
    from samplers import When

    every = getattr(sampler, "every", 1)
    numbers = range(max(4, every) // every * every)  # whole cycles, of four steps or more
    starts = sorted({0.0, getattr(sampler, "begin", 0.0), getattr(sampler, "jumps_from", 1.0), 1.0})
    return sum(
        (end - start) * statistics.mean(seconds(When(number, start)) for number in numbers)
        for start, end in pairwise(starts)
    )


def main(argv: list[str] | None = None) -> None:
    cfg: BenchmarkCfg = parse(BenchmarkCfg, argv, "python -m scripts.benchmark", flags=True)
    with refuse_kindly("benchmark"):
        measure(cfg)


def measure(cfg: BenchmarkCfg) -> dict[str, Any]:
    """Measure the parts that ``cfg`` asks for; returns the numbers by key."""
    began = time.perf_counter()
    os.environ.setdefault("TQDM_DISABLE", "1")  # tqdm reads it when it is imported
    from scripts.benchmarks import generation, rivals, startup, training
    from scripts.benchmarks.report import Report, machine
    from scripts.seeded import choose_device

    device = choose_device(cfg.accelerator)
    if cfg.json:  # where it cannot be written, minutes would have gone into nothing
        Path(cfg.json).parent.mkdir(parents=True, exist_ok=True)
        with Path(cfg.json).open("a"):
            pass
    stage_2 = STAGE_2[cfg.preset]()
    # Beside others with AdamW, which they have, and so that objectives and number formats differ by themselves alone.
    stage_2 = replace(stage_2, optim=replace(stage_2.optim, muon_lr=0.0))
    stage_1 = replace(STAGE_1[cfg.preset](), data=stage_2.data)
    report = Report()
    machine(report, device)
    parts: dict[str, Callable[..., None]] = {
        "layers": training.layers, "precision": training.precision, "objectives": training.objectives,
        "pipeline": training.pipeline, "graphs": training.recordings, "data": training.waiting,
        "pixels": training.pixels, "generation": generation.speed, "rivals": rivals.compare,
        "memory": generation.memory, "startup": startup.start,
    }  # fmt: skip
    with ExitStack() as folders:
        disk = Path(folders.enter_context(TemporaryDirectory()))
        roomy = os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free > ROOM * cfg.rounds  # containers: often not
        memory = Path(folders.enter_context(TemporaryDirectory(dir=SHM))) if roomy else None
        setting = training.Setting(stage_1, stage_2, cfg, device, disk, memory)
        for name in cfg.only or PARTS:
            started = time.perf_counter()
            parts[name](setting, report)
            report.number(f"{name}_minutes", (time.perf_counter() - started) / 60)
            if cfg.json:
                report.save(cfg.json)  # whatever comes after, this is kept
    report.title("All")
    report.number("minutes", (time.perf_counter() - began) / 60)
    if cfg.json:
        report.save(cfg.json)
    return report.numbers


if __name__ == "__main__":
    main()
