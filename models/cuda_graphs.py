"""A training's network calls as CUDA graphs: recorded once, then started as a whole.

The kernels of a small network take less time than the processor needs to start them one by one, so the GPU waits. What
is recorded is started at once (Gray 2019, "Getting Started with CUDA Graphs"); its inputs are copied into place first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from configs.checks import ConfigError
from configs.trainer_cfg import TrainerCfg
from models.hardware import first_device, processes
from models.text import Condition

Tensors = tuple[Tensor, ...]
Forward = Callable[[Tensor, Tensor, Tensor, Condition], Tensor]
Record = Callable[["Plain", Tensors], Callable[..., Tensor]]
# A loader's thread may ask for memory while this one records; torch 2.11 has no word for it here.
LENIENT = "capture_error_mode" in inspect.signature(torch.cuda.make_graphed_callables).parameters
OTHERS_GO_ON: dict[str, Any] = {"capture_error_mode": "thread_local"} if LENIENT else {}
MOST = 4  # shapes that are recorded for one network; further ones are computed as ever
WARM_UP = 3  # calls before a recording, in which libraries choose their kernels


def require_one_gpu(cfg: TrainerCfg) -> None:
    """Raise ConfigError where ``cfg`` asks for CUDA graphs that this training cannot have."""
    if not cfg.cuda_graphs:
        return
    if first_device(cfg).type != "cuda":
        raise ConfigError("train.cuda_graphs is True, but this training has no CUDA GPU: leave it False")
    devices, nodes = processes(cfg)
    if devices * nodes > 1:
        raise ConfigError(f"train.cuda_graphs is True, but this training has {devices * nodes} processes: "
                          "set train.devices 1, or leave it False")  # fmt: skip


def advice(cfg: TrainerCfg) -> str:
    """What to tell whoever trains on one GPU without recordings; empty where they could not be had."""
    devices, nodes = processes(cfg)
    if cfg.cuda_graphs or cfg.compile or cfg.accumulate > 1 or devices * nodes > 1 or first_device(cfg).type != "cuda":
        return ""
    return "on one GPU, --train.cuda-graphs True makes the steps of a small network several times shorter"


def replay_calls(networks: list[nn.Module], cfg: TrainerCfg) -> None:
    """Let networks record their calls, shape by shape, and replay them from then on, if ``cfg.cuda_graphs``."""
    for net in networks if cfg.cuda_graphs else []:
        net.forward = Replayed(net, record_training, record_answer)


class Plain(nn.Module):
    """A network whose prompts come as plain tensors, as recordings want them."""

    def __init__(self, net: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.net, self.call = net, forward

    def forward(
        self, x: Tensor, t: Tensor, dt: Tensor, tokens: Tensor, keep: Tensor, sketch: Tensor | None = None
    ) -> Tensor:
        """x [B,C,h,w], t [B], dt [B], tokens [B,L,D], keep [B,L], sketch [B,1,H,W] or none -> [B,C,h,w]."""
        return self.call(x, t, dt, Condition(tokens, keep, sketch=sketch))


class Replayed:
    """The forward of a network: a recording for each shape and mode of its calls, the first ``MOST`` of them."""

    def __init__(self, net: nn.Module, training: Record, answer: Record) -> None:
        self.net, self.training, self.answer = net, training, answer
        self.plainly: Forward = net.forward
        self.recordings: dict[Any, Callable[..., Tensor]] = {}

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Condition) -> Tensor:
        """As the network's own forward."""
        inputs = (x, t, dt, cond.tokens, cond.keep, *([] if cond.sketch is None else [cond.sketch]))
        learns = torch.is_grad_enabled()
        cast = (torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type),
                torch.backends.cudnn.allow_tf32)  # fmt: skip
        what = learns, self.net.training, cast, [(value.shape, value.dtype, value.requires_grad) for value in inputs]
        known = self.recordings.get(str(what))
        if known is None and cond.guidance is None and learns == self.net.training and len(self.recordings) < MOST:
            record = self.training if learns else self.answer
            plain = Plain(self.net, self.plainly).train(self.net.training)
            known = self.recordings[str(what)] = record(plain, tuple(value.detach().clone() for value in inputs))
        return self.plainly(x, t, dt, cond) if known is None or cond.guidance is not None else known(*inputs)


def uncached() -> Any:
    """Autocast as it is now, but without its cache of cast weights: a recording must cast them at each replay."""
    on = torch.is_autocast_enabled("cuda")
    return torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=on, cache_enabled=False)


def record_training(plain: Plain, inputs: Tensors) -> Callable[..., Tensor]:
    """Forward and backward pass, for inputs like these. The gradients' memory is that of the recording."""
    with uncached():
        return torch.cuda.make_graphed_callables(  # type: ignore[return-value]  # one callable in, one out
            plain, inputs, allow_unused_input=True, **OTHERS_GO_ON
        )


def record_answer(plain: Plain, inputs: Tensors) -> Callable[..., Tensor]:
    """A call without gradients, for inputs like these."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside), uncached():
        for _ in range(WARM_UP):
            plain(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"), uncached():
        answer = plain(*inputs)

    def replay(*values: Tensor) -> Tensor:
        for place, value in zip(inputs, values, strict=True):
            place.copy_(value)
        graph.replay()
        return answer.clone()

    return replay
