"""A training step without Lightning, of both stages and of any objective."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from autoencoder import AutoencoderModule
from configs.autoencoder_cfg import Stage1Cfg
from configs.diffusion_cfg import Stage2Cfg
from diffusion import DiffusionModule
from models.cuda_graphs import replay_calls
from models.ema import ema_update_
from models.hardware import faster_format
from models.optim import build_optimizer
from samplers import When
from scripts.benchmarks.report import elapsed

Seconds = Callable[[When], float]


def autocast(bf16: bool, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def optimised(
    loss: Callable[[When], Tensor], net: torch.nn.Module, averages: list[torch.nn.Module], cfg: Any, max_steps: int
) -> Callable[[When], None]:
    """A whole step: ``loss`` and its gradients, clipping, AdamW, averages."""
    optimizer = build_optimizer(net, cfg, max_steps)["optimizer"]

    def step(when: When) -> None:
        loss(when).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        for average in averages:
            ema_update_(average, net, 0.99)

    return step


def stage_2_step(
    cfg: Stage2Cfg, stage_1: Stage1Cfg, *, bf16: bool, device: torch.device, layout: str = "off"
) -> Callable[[When], None]:
    """A step of the network of ``cfg`` under its objective, on latents of noise; ``layout`` as channels_last.

    ``cfg.train.cuda_graphs`` is heeded.
    """
    torch.manual_seed(0)
    module = DiffusionModule(cfg, AutoencoderModule(stage_1)).train().to(device)
    inputs = module.example_inputs(cfg.data.batch_size)
    module.to(memory_format=faster_format(layout, module.net, tuple(value.to(device) for value in inputs), bf16))
    replay_calls([module.net, module.teacher], cfg.train)
    module.encode_text.padded = cfg.train.cuda_graphs
    x1 = torch.randn(cfg.data.batch_size, *module.latent_shape, device=device)
    cond = module.encode_text(["a giraffe"] * len(x1), device)

    def loss(when: When) -> Tensor:
        with autocast(bf16, device):
            return module.loss(x1, cond, when)[0]

    return optimised(loss, module.net, [module.average, module.teacher], cfg.optim, cfg.train.max_steps)


def stage_1_step(
    cfg: Stage1Cfg, *, bf16: bool, device: torch.device, layout: str = "off"
) -> Callable[[When], None]:
    """A step of the autoencoder on masks of noise."""
    torch.manual_seed(0)
    module = AutoencoderModule(cfg).train().to(device)
    x = torch.rand(cfg.data.batch_size, cfg.data.channels, cfg.data.image_size, cfg.data.image_size, device=device)
    x = x.round()
    module.to(memory_format=faster_format(layout, module.vae.encoder, (module.vae.squares(x),), bf16))

    def loss(when: When) -> Tensor:
        with autocast(bf16, device):
            return module.losses(module.vae, x)[0]

    return optimised(loss, module.vae, [module.average], cfg.optim, cfg.train.max_steps)


def timed(step: Callable[[When], None], device: torch.device) -> Callable[[], float]:
    """Seconds of one step with everything in it."""
    return lambda: elapsed(lambda: step(When()), device)


def operations(step: Callable[[When], None]) -> float:
    """Floating-point operations of a step: products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step(When())
    return float(counter.get_total_flops())
