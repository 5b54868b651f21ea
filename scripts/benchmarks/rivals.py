"""The same work with diffusers: a network and an autoencoder of equal parameters, in its own samplers."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.trainer_cfg import OptimCfg
from models.hardware import faster_format
from samplers import When
from scripts.benchmarks.generation import ANIMALS, BATCH, shipped, to_files
from scripts.benchmarks.report import Report, elapsed, interleaved
from scripts.benchmarks.step import autocast, optimised, stage_2_step, timed
from scripts.benchmarks.training import Setting
from scripts.mask_model import MaskModel

LAYOUTS = (torch.contiguous_format, torch.channels_last)


class Sample(nn.Module):
    """diffusers' network, answering a tensor."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        answer: Tensor = self.unet(x, t, encoder_hidden_states=states).sample
        return answer


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def nearest(make: Callable[[int], Any], widths: range, wanted: int) -> Any:
    """The network whose number of parameters, which grows with its width, is nearest to ``wanted``."""

    @cache
    def of_width(width: int) -> int:
        with torch.device("meta"):
            return size(make(width))

    above = bisect_left(widths, wanted, key=of_width)
    beside = widths[max(0, above - 1) : above + 1]
    return make(min(beside, key=lambda width: abs(of_width(width) - wanted)))


def networks(module: MaskModel) -> tuple[Any, Any]:
    """diffusers' UNet2DConditionModel and AutoencoderKL of as many parameters and levels as those of ``module``."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    channels, side, _ = module.latent_shape
    factor = module.autoencoder.cfg.autoencoder.factor

    def unet(width: int) -> Any:
        return UNet2DConditionModel(
            sample_size=side, in_channels=channels, out_channels=channels, block_out_channels=(width, 2 * width),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=2, norm_num_groups=4,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
            cross_attention_dim=module.encode_text.features,
        )  # fmt: skip

    def vae(width: int) -> Any:
        levels = factor.bit_length()
        return AutoencoderKL(
            in_channels=1, out_channels=1, latent_channels=channels, norm_num_groups=4, sample_size=side * factor,
            block_out_channels=tuple(width * 2**level for level in range(levels)), layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        )  # fmt: skip

    widths = range(16, 257, 4)
    ours = size(module.average), size(module.autoencoder.average)
    return nearest(unet, widths, ours[0]).eval(), nearest(vae, widths, ours[1]).eval()


def sampled(unet: Any, vae: Any, scheduler: Any, steps: int, states: Tensor, noise: Tensor, folder: Path) -> None:
    """Prompts' states [B,L,D] and noise [B,C,h,w] to B files."""
    from PIL import Image

    with torch.inference_mode():
        scheduler.set_timesteps(steps)
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, encoder_hidden_states=states).sample, t, x).prev_sample.to(noise.dtype)
        masks = (vae.decode(x).sample[:, 0] > 0).cpu().numpy().astype(np.uint8) * 255
    for row, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{row}.png")


def compare(setting: Setting, report: Report) -> None:
    """Generation and a training step of theirs beside ours."""
    where = "in memory" if setting.memory else "on disk"
    report.title(f"diffusers' networks of equal parameters / ours (per mask, files {where}; per training step)")
    if find_spec("diffusers") is None:
        report.note("rivals", "not measured: diffusers is not installed (bash scripts/setup.sh --tests)")
        return
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
    from diffusers.utils import logging

    logging.set_verbosity_error()

    module, device = shipped(setting.device, setting.bf16), setting.device
    unet, vae = networks(module)
    report.ratio("rival_unet_parameters_to_ours", [size(unet)], [size(module.average)])
    report.ratio("rival_vae_parameters_to_ours", [size(vae)], [size(module.autoencoder.average)])
    cond = module.encode_text([ANIMALS[row % len(ANIMALS)] for row in range(BATCH)], device)
    noise = torch.randn(BATCH, *module.latent_shape, device=device)

    def one_step(dtype: torch.dtype, layout: torch.memory_format) -> float:
        unet.to(device, dtype, memory_format=layout)
        with torch.inference_mode():
            return elapsed(lambda: unet(noise.to(dtype), 1, encoder_hidden_states=cond.tokens.to(dtype)), device)

    ways = [(dtype, layout) for dtype in setting.formats.values() for layout in LAYOUTS]
    seconds = interleaved({str(way): partial(one_step, *way) for way in ways}, 3)
    dtype, layout = min(ways, key=lambda way: min(seconds[str(way)]))
    report.note("rival_dtype", f"{dtype}, {layout}")
    unet, vae = (net.to(device, dtype, memory_format=layout) for net in (unet, vae))
    states, start = cond.tokens.to(dtype), noise.to(dtype)
    samplers = {"ddim_50": (DDIMScheduler(), 50), "dpmpp_20": (DPMSolverMultistepScheduler(), 20)}

    def theirs(scheduler: Any, steps: int) -> float:
        folder = setting.folder(in_memory=True)
        return elapsed(lambda: sampled(unet, vae, scheduler, steps, states, start, folder), device) / BATCH

    count = (4 * BATCH if setting.cfg.quick else 1000) // len(ANIMALS) * len(ANIMALS)
    precision = "bf16" if setting.bf16 else "fp32"
    runs = {"ours": lambda: to_files(module, count, 1, setting, True, precision=precision) / count}
    for name, how in samplers.items():
        runs[name] = partial(theirs, *how)
    times = interleaved(runs, min(setting.cfg.rounds, max(2, setting.cfg.rounds // 3)))
    for name, goal in (("ddim_50", ">= 60"), ("dpmpp_20", ">= 24")):
        report.ratio(f"rival_{name}_to_ours", times[name], times["ours"], goal)

    data = setting.stage_2.data
    ours = stage_2_step(
        replace(setting.flow, backbone=module.cfg.backbone, data=data), setting.stage_1, bf16=setting.bf16,
        device=device, layout="auto",
    )
    other = their_step(unet.float().train(), data.batch_size, module, setting)
    times = setting.interleaved({"ours": timed(ours, device), "theirs": timed(other, device)})
    report.ratio("rival_training_step_to_ours", times["theirs"], times["ours"], ">= 1.5")


def their_step(unet: Any, rows: int, module: MaskModel, setting: Setting) -> Callable[[When], None]:
    """Noise prediction with diffusers' network and two averages of it, in the precision of ours and the memory format
    that is faster for it."""
    from models.ema import frozen_twin

    device = setting.device
    x1 = torch.randn(rows, *module.latent_shape, device=device)
    states = module.encode_text(["a giraffe"] * rows, device).tokens
    inputs = x1, torch.rand(rows, device=device), states
    unet.to(memory_format=faster_format("auto", Sample(unet), inputs, setting.bf16))

    def loss(_: When) -> Tensor:
        noise, t = torch.randn_like(x1), torch.rand(rows, device=device)
        x_t = torch.lerp(noise, x1, t[:, None, None, None])
        with autocast(setting.bf16, device):
            answer = unet(x_t, 1000 * (1 - t), encoder_hidden_states=states).sample
        return (answer.float() - noise).square().mean()

    return optimised(loss, unet, [frozen_twin(unet), frozen_twin(unet)], OptimCfg(), 1000)
