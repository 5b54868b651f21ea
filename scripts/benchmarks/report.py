"""Interleaved timing, and the numbers that come of it as a table and as JSON."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FEWEST = 3
"""Repeats, where time is short."""
TRIES = 20
"""Of which the fastest counts as this machine's peak."""


def elapsed(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of a call, with the work that it leaves to a GPU."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def interleaved(
    runs: Mapping[str, Callable[[], float]], repeats: int, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Seconds that each run says it took, one number per repeat, after one call of each to warm up.

    All run once in each repeat, so that a slow moment of the machine hits all of them. After ``seconds`` no other
    repeat begins, unless there were fewer than three.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for number in range(repeats):
        if number >= FEWEST and time.perf_counter() - began >= seconds:
            break
        for name, run in runs.items():
            times[name].append(run())
    return times


@dataclass
class Report:
    """Numbers by key; each is printed as soon as it is known."""

    numbers: dict[str, Any] = field(default_factory=dict)

    def ratio(self, key: str, own: Sequence[float], base: Sequence[float], goal: str = "") -> None:
        """Median of own/base over the repeats, with the lowest and the highest; ``goal`` is such as "<= 1.03"."""
        found = [a / b for a, b in zip(own, base, strict=True)]
        low, middle, high = min(found), statistics.median(found), max(found)
        self.numbers |= {f"{key}_ratio": middle, f"{key}_low": low, f"{key}_high": high}
        met = f"{'met' if meets(middle, goal) else 'MISSED'}: {goal}" if goal else ""
        self._line(f"{key}_ratio", f"{middle:.3f}", f"{low:.3f} to {high:.3f}", met)

    def number(self, key: str, value: float, unit: str = "") -> None:
        self.numbers[key] = value
        self._line(key, f"{value:.4g}", unit, "")

    def note(self, key: str, text: str) -> None:
        self.numbers[key] = text
        self._line(key, text, "", "")

    def title(self, text: str) -> None:
        print(f"\n{text}\n{'key':46} {'median':>10}   {'lowest to highest':22} goal", flush=True)

    def _line(self, key: str, value: str, spread: str, goal: str) -> None:
        print(f"{key:46} {value:>10}   {spread:22} {goal}".rstrip(), flush=True)

    def save(self, path: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(self.numbers, indent=2) + "\n", encoding="utf-8")


def meets(value: float, goal: str) -> bool:
    """Whether a number keeps a goal such as "<= 1.03" or ">= 2"."""
    sign, bound = goal.split()
    return value <= float(bound) if sign == "<=" else value >= float(bound)


def machine(report: Report, device: torch.device) -> None:
    """Cores, instructions for bf16, GPU and versions."""
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        flags = set(next((line for line in info.read_text().splitlines() if line.startswith("flags")), "").split())
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    report.note("machine", f"{platform.system()} {platform.machine()}, {cores} cores, {threads} threads")
    report.note("instructions", " ".join(wanted) or "not known")
    report.note("gpu", torch.cuda.get_device_name(device) if device.type == "cuda" else "none")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
    report.note("versions", f"Python {platform.python_version()}, {libraries}")


def peak(dtype: torch.dtype, device: torch.device, kind: str) -> float:
    """Floating-point operations per second of a large product ("matmul") or 3x3 convolution ("conv"), the best try."""
    if kind == "matmul":
        side = 1024 if device.type == "cpu" else 8192
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        work, run = 2 * side**3, lambda: a @ b
    else:
        rows = 4 if device.type == "cpu" else 64
        x = torch.randn(rows, 256, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        conv = torch.nn.Conv2d(256, 256, 3, padding=1, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        work, run = 2 * rows * 32 * 32 * 9 * 256**2, lambda: conv(x)
    with torch.inference_mode():
        return work / min(elapsed(run, device) for _ in range(TRIES))
