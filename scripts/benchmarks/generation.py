"""What generation costs: from prompts to files, beside the network and the decoder alone, and in memory."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from configs.generate_cfg import GenerateCfg
from configs.shipped import checkpoint_path
from samplers import Guidance
from scripts.benchmarks.report import Report, elapsed
from scripts.benchmarks.step import autocast
from scripts.benchmarks.training import Setting
from scripts.generate_masks import draw_masks, generate_to_folder, write_masks
from scripts.mask_files import Plan
from scripts.mask_model import MaskModel, load_mask_model
from scripts.seeded import Recipe

ANIMALS = tuple(f"a {name}" for name in ("giraffe", "horse", "cat", "bird", "cow", "bear", "zebra", "dog", "sheep"))
BATCH = 64
MODEL = "animals"
ALONE = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""  # a small process between: a child's peak is never told below what its parent held when it was started


def shipped(device: torch.device, bf16: bool = False) -> MaskModel:
    """The 32-pixel model that comes with the project."""
    return load_mask_model(checkpoint_path(MODEL), device, bf16)


def to_files(
    module: MaskModel, count: int, steps: int, setting: Setting, in_memory: bool = False, **options: Any
) -> float:
    """Seconds of writing ``count`` masks, or up to eight more, into an empty folder."""
    cfg = GenerateCfg(
        MODEL, prompt=ANIMALS, num=-(-count // len(ANIMALS)), steps=(steps,), out=str(setting.folder(in_memory)),
        batch_size=BATCH, accelerator=setting.cfg.accelerator, **options,
    )
    return elapsed(lambda: generate_to_folder(module, cfg), setting.device)


def bare(module: MaskModel, setting: Setting) -> Callable[[], object]:
    """One batch through the network in one step and through the decoder, with its inputs at hand."""
    noise = torch.randn(BATCH, *module.latent_shape, device=setting.device)
    cond = module.encode_text([ANIMALS[row % len(ANIMALS)] for row in range(BATCH)], setting.device)
    zero = torch.zeros(BATCH, device=setting.device)

    def forward() -> object:
        with torch.inference_mode(), autocast(setting.bf16, setting.device):
            return module.autoencoder.to_pixels(noise + module.average(noise, zero, zero + 1, cond))

    return forward


def speed(setting: Setting, report: Report) -> None:
    """Masks from prompts to files in one step, what they cost beside the bare networks, and where the time goes."""
    report.title(f"Generation of {MODEL} in one step, batches of {BATCH}, in the faster precision")
    module, device = shipped(setting.device, setting.bf16), setting.device
    exact = shipped(device)
    batches = 4 if setting.cfg.quick else 16
    count = BATCH * batches // len(ANIMALS) * len(ANIMALS)
    forward = bare(module, setting)
    precision = "bf16" if setting.bf16 else "fp32"
    plan = Plan(ANIMALS, [name.replace(" ", "-") for name in ANIMALS], BATCH * batches, 0, [1], {"threshold": 0.5})
    way = Recipe(module.sampler, 1, guidance=Guidance(), bf16=setting.bf16)
    numbers = list(range(BATCH))
    masks = draw_masks(module, plan, numbers, way, device)

    def draw_all() -> None:
        for _ in range(batches):
            draw_masks(module, plan, numbers, way, device)

    def write_all() -> None:
        cfg = GenerateCfg(MODEL, prompt=ANIMALS)
        for _ in range(batches):
            write_masks(setting.folder(), plan, numbers, 1, masks, cfg)

    def make_files() -> None:
        folder = setting.folder()
        for number in range(count):
            (part := folder / f".{number}.part").write_bytes(bytes(300))
            os.replace(part, folder / f"{number}.png")

    times = setting.interleaved(
        {
            "files": lambda: to_files(module, count, 1, setting, precision=precision) / count,
            "files_in_memory": lambda: to_files(module, count, 1, setting, True, precision=precision) / count,
            "files_fp32": lambda: to_files(exact, count, 1, setting) / count,
            "bare": lambda: elapsed(lambda: [forward() for _ in range(batches)], device) / (BATCH * batches),
            "draw": lambda: elapsed(draw_all, device) / (BATCH * batches),
            "write": lambda: elapsed(write_all, device) / (BATCH * batches),
            "file": lambda: elapsed(make_files, device) / count,
            "single": lambda: elapsed(lambda: draw_masks(module, plan, [0], way, device), device),
        }
    )
    report.ratio("files_to_bare_networks", times["files"], times["bare"], "<= 1.3")
    if setting.memory:
        report.ratio("files_in_memory_to_bare_networks", times["files_in_memory"], times["bare"], "<= 1.3")
    in_turn = [draw + write for draw, write in zip(times["draw"], times["write"], strict=True)]
    report.ratio("files_to_draw_then_write", times["files"], in_turn)
    report.ratio("write_share_of_files", times["write"], times["files"])
    report.number("masks_per_second", 1 / min(times["files"]), "the fastest repeat")
    report.number("masks_per_second_fp32", 1 / min(times["files_fp32"]), "the fastest repeat")
    report.number("file_milliseconds", 1000 * statistics.median(times["file"]),
                  "ms, what the disk takes for a file; more where many were deleted in the last minutes")  # fmt: skip
    report.number("single_mask_milliseconds", 1000 * min(times["single"]), "ms, the shortest")


def memory(setting: Setting, report: Report) -> None:
    """Peak memory of a process that writes many masks, beside one that writes 1,000."""
    many = 10_000 if setting.cfg.quick else 100_000
    report.title(f"Peak memory of generating {many:,} masks / 1,000")
    peaks = {}
    for count in (1000, many):
        words = ["--checkpoint", MODEL, "--num", str(count // 10), "--steps", "1", "--out", str(setting.folder()),
                 "--accelerator", setting.cfg.accelerator]  # fmt: skip
        for name in (*ANIMALS, "an elephant"):
            words += ["--prompt", name]
        began = time.perf_counter()
        peaks[count] = peak_memory([sys.executable, "-m", "scripts.generate_masks", *words])
        report.number(f"memory_{count}_masks_mib", peaks[count], f"MiB, {time.perf_counter() - began:.0f} s")
    report.ratio("memory_many_to_1000_masks", [peaks[many]], [peaks[1000]], "<= 1.1")


def peak_memory(command: list[str]) -> float:
    """MiB that a command holds at most. Raises CalledProcessError."""
    told = subprocess.run([sys.executable, "-c", ALONE, *command], stdout=subprocess.PIPE, check=True).stdout
    return int(told) / (1024**2 if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere
