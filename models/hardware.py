"""Choices that depend on the machine, made by measuring for a moment."""

import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from configs.checks import ConfigError, first_line
from configs.run_folder import launched_by_torchrun
from configs.trainer_cfg import TrainerCfg

LAUNCHED = frozenset(("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
"""Variables of the environment, one of which a process has that was started by a launcher or for another machine."""


TIMED_ROWS = 64
"""Of a batch, at most, with which memory formats are timed on a CPU, where a step of all can take many seconds. With
fewer, formats that are nearly as fast as each other change places (docs/speed.md)."""


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Shortest wall-clock time of a call, in seconds, after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def bf16_is_fast(device: str) -> bool:
    """True when a bfloat16 convolution takes less than 0.7 of the time of a float32 one on ``device``.

    A CPU with AMX or AVX-512-BF16 passes; one that emulates bfloat16 does not. CUDA is asked, not timed.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bf16_to_fp32() < 0.7


@cache
def bf16_to_fp32() -> float:
    """Time of a bfloat16 convolution on this CPU / that of a float32 one: 0.3 to 0.7 where the CPU has it, 1 to 3 with
    AVX-512 alone, 10 where torch computes each number by itself (AVX2)."""

    def convolve(dtype: torch.dtype) -> Callable[[], object]:
        x = torch.randn(64, 64, 16, 16, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn(64, 64, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        return lambda: F.conv2d(x, w, padding=1)

    with torch.inference_mode():
        return seconds(convolve(torch.bfloat16), 5) / seconds(convolve(torch.float32), 5)


def faster_format(choice: str, net: nn.Module, inputs: tuple[Any, ...], bf16: bool) -> torch.memory_format:
    """Memory format for the convolutions: as chosen ("on", "off"), or the faster for forward and backward ("auto")."""
    if choice != "auto":
        return torch.channels_last if choice == "on" else torch.contiguous_format
    device = next(net.parameters()).device.type
    if device == "cpu":
        inputs = tuple(value[:TIMED_ROWS] for value in inputs)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            error = net(*inputs).float().square().mean()
            if error.requires_grad:  # a network that is not trained is only asked
                error.backward()
        net.zero_grad(set_to_none=True)

    times = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=layout)
        times[layout] = seconds(step, 2)
    return min(times, key=lambda layout: times[layout])


def precision_for(cfg: TrainerCfg) -> str:
    """Lightning's name of the precision; auto measures whether bf16 pays on this machine."""
    named = {"fp32": "32-true", "bf16-mixed": "bf16-mixed", "fp16-mixed": "16-mixed"}
    if cfg.precision != "auto":
        return named[cfg.precision]
    return "bf16-mixed" if bf16_is_fast(first_device(cfg).type) else "32-true"


def first_device(cfg: TrainerCfg) -> torch.device:
    """The device of this process, as far as it can be known before the Trainer has set one."""
    if cfg.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def low_precision(cfg: TrainerCfg) -> AbstractContextManager[object]:
    """bfloat16 autocast on the first device, where the training itself uses it."""
    if precision_for(cfg) != "bf16-mixed":
        return nullcontext()
    return torch.autocast(first_device(cfg).type, torch.bfloat16)


def tasks_of_srun() -> int:
    """How many processes srun has started with this one; 1 where it has not."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def processes(cfg: TrainerCfg) -> tuple[int, int]:
    """(processes on this machine, machines): what a launcher has started, else what the config says."""
    if launched_by_torchrun():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    on_gpu = cfg.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    return cfg.devices or (torch.cuda.device_count() if on_gpu else 1), cfg.nodes


def require_processes(cfg: TrainerCfg) -> None:
    """Raise ConfigError where the processes of a training would not be as many as it has, or would never meet."""
    devices, nodes = processes(cfg)
    if cfg.strategy == "hybrid" and devices == 1 < nodes:
        raise ConfigError(f"train.strategy is 'hybrid', but each of the {nodes} machines has one process, among which "
                          "there is nothing to share out: take ddp, or fsdp to share over all machines")  # fmt: skip
    tasks = 1 if launched_by_torchrun() else tasks_of_srun()
    if tasks > 1 and tasks != devices * nodes:
        raise ConfigError(f"srun has started {tasks} processes, but the training has {devices} on each of {nodes} "
                          "machine(s): start it with scripts/launch.slurm")  # fmt: skip
    if devices * nodes > 1:
        require_port()
    if nodes > 1:
        require_address()


def require_port() -> None:
    """Raise ConfigError where MASTER_PORT names a port that is taken: processes started here would never meet there."""
    port = os.environ.get("MASTER_PORT")
    if port is None or not LAUNCHED.isdisjoint(os.environ):
        return  # Lightning takes a free one; or a launcher has chosen one, and may be listening there itself
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the processes will: or it is kept a while
            probe.bind(("", int(port)))
    except (OSError, ValueError, OverflowError) as reason:
        raise ConfigError(
            f"the environment variable MASTER_PORT is {port!r}, where the processes of this training cannot meet "
            f"({reason}): unset it, and a free port is taken"
        ) from None


def require_address() -> None:
    """Raise ConfigError where other machines would be told to find this one at an address that is theirs, too."""
    head = os.environ.get("MASTER_ADDR", "")
    if "GLOO_SOCKET_IFNAME" in os.environ or head == "localhost" or head.startswith("127."):
        return  # chosen; or all "machines" are this one
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "no address"
    if address == "no address" or address.startswith("127."):
        raise ConfigError(
            f"this machine's name, {name}, stands for {address}, so that it would wait where no other machine can "
            "reach it: set the environment variable GLOO_SOCKET_IFNAME to the name of its network interface "
            "(ip -brief address lists them), or mend /etc/hosts"
        )


def set_memory_format(module: nn.Module, net: nn.Module, inputs: tuple[Any, ...], cfg: TrainerCfg) -> None:
    """Lay out all filters in the format that is faster for ``net`` where it will train.

    Several processes are not asked: where two layouts are as fast, each would find another, and DDP refuses that.
    """
    device = first_device(cfg)
    there = tuple(value.to(device) for value in inputs)
    choice = "off" if cfg.strategy in ("fsdp", "hybrid") else cfg.channels_last  # fully_shard takes no other layout
    if choice == "auto" and math.prod(processes(cfg)) > 1:
        choice = "on" if device.type == "cuda" else "off"
    layout = faster_format(choice, net.to(device), there, precision_for(cfg) == "bf16-mixed")
    module.to("cpu").to(memory_format=layout)


def compile_networks(networks: list[nn.Module], cfg: TrainerCfg) -> None:
    """Let torch.compile make one kernel of what it can, if ``cfg.compile``; done at the networks' first call.

    Raises:
        ConfigError: nothing can be compiled for this device here.
    """
    if not cfg.compile:
        return
    device = first_device(cfg)
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as reason:  # whatever a missing or broken compiler raises, through several layers of torch
        raise ConfigError(
            f"train.compile is True, but torch cannot compile for {device.type} here ({first_line(reason)}): "
            "install a C++ compiler (on a GPU, Triton), or leave train.compile False"
        ) from None
    for net in networks:
        net.compile()
