"""What training costs: layers, precision, objectives, Lightning, waiting for data, and larger masks."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoencoder import AutoencoderModule
from configs.autoencoder_cfg import Stage1Cfg
from configs.backbone_cfg import UNetCfg
from configs.benchmark_cfg import BenchmarkCfg
from configs.data_cfg import AugmentCfg, DataCfg, EmbeddedSource, FolderSource
from configs.diffusion_cfg import Stage2Cfg
from configs.sampler_cfg import FlowCfg
from data.module import MaskDataModule
from diffusion import DiffusionModule
from metrics.classifier import multiplies_bf16
from models.ema import ema_update_
from models.hardware import bf16_is_fast, bf16_to_fp32, faster_format, set_memory_format
from models.optim import build_optimizer
from models.resampling import ConvDown, ConvUp
from models.wavelet import WaveletDown, WaveletUp
from samplers import When
from scripts import benchmark
from scripts.benchmarks.report import FEWEST, Report, elapsed, interleaved, peak
from scripts.benchmarks.step import autocast, operations, stage_1_step, stage_2_step, timed

PICTURES = 20_000
SIDES = (8, 16, 32, 64)
"""Of what the resampling layers see or make."""
PASSES = 10
"""Of such a layer at the smallest size, timed together; fewer at larger ones on a CPU."""
GROWN = 32
"""Rows of a batch where the size of masks is what changes."""
EMULATED = 5.0
"""Times what float32 takes: from there on, bfloat16 is nothing that one would use or wait for."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and where."""

    stage_1: Stage1Cfg
    stage_2: Stage2Cfg
    cfg: BenchmarkCfg
    device: torch.device
    disk: Path
    memory: Path | None = None
    """Folders for files, the second of Linux's file system in memory: what a disk takes to make a file is not ours."""

    def folder(self, in_memory: bool = False) -> Path:
        """A new folder on the disk, or in memory if there is such. It stays until all is measured: to make a file, ext4
        looks at those that were deleted in the last minutes, so that one measurement would slow the next."""
        return Path(mkdtemp(dir=self.memory if in_memory and self.memory else self.disk))

    def interleaved(self, runs: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
        """Seconds of each run, as often as the config says and its time allows."""
        return interleaved(runs, self.cfg.rounds, self.cfg.seconds)

    @cached_property
    def bf16(self) -> bool:
        """Whether bf16 is what a training would choose here."""
        return bf16_is_fast(self.device.type)

    @cached_property
    def formats(self) -> dict[str, torch.dtype]:
        """Name -> number format, for all that are worth measuring here."""
        emulated = self.device.type == "cpu" and bf16_to_fp32() > EMULATED
        return {"fp32": torch.float32} if emulated else {"fp32": torch.float32, "bf16": torch.bfloat16}

    def note_formats(self, report: Report) -> None:
        if "bf16" not in self.formats:
            report.note("bf16", f"not measured: emulated here, at {bf16_to_fp32():.0f} times the time of fp32")

    @property
    def flow(self) -> Stage2Cfg:
        """The preset under plain flow matching."""
        return replace(self.stage_2, sampler=FlowCfg())

    def flow_on(self, data: DataCfg) -> Stage2Cfg:
        """The same for masks of another size: it attends where the preset does, on latents as much larger."""
        backbone, side = self.flow.backbone, self.stage_2.data.image_size
        if isinstance(backbone, UNetCfg):
            sizes = tuple(size * data.image_size // side for size in backbone.attention_sizes)
            backbone = replace(backbone, attention_sizes=sizes)
        return replace(self.flow, backbone=backbone, data=data)


def layers(setting: Setting, report: Report) -> None:
    """Wavelet resampling, plain and with gates and band skips, beside convolutions of as many channels."""
    report.title("Wavelet down and up / stride-2 and nearest-neighbour convolution (as one), forward and backward")
    setting.note_formats(report)
    channels, rows, emb = 64, 32, 256
    for size in SIDES:
        for name, dtype in setting.formats.items():
            layers = {
                "down": (WaveletDown(channels, emb, gates=False), WaveletDown(channels, emb), ConvDown(channels)),
                "up": (
                    WaveletUp(channels, channels, emb, gates=False, band_skips=False),
                    WaveletUp(channels, channels, emb), ConvUp(channels, channels), NearestThenConv(channels),
                ),
            }  # fmt: skip
            for kind, kinds in layers.items():
                half = size // 2 if kind == "up" else size
                passes = PASSES if setting.device.type == "cuda" else max(1, PASSES * SIDES[0] // size)
                runs = {
                    key: layer_run(layer, rows, channels, half, emb, dtype, setting.device, passes)
                    for key, layer in zip(("wavelet", "gated", "conv", "one_by_one"), kinds, strict=False)
                }
                times = setting.interleaved(runs)
                report.ratio(f"wavelet_{kind}_{size}_{name}", times["wavelet"], times["conv"], "<= 1")
                report.ratio(f"gated_wavelet_{kind}_{size}_{name}", times["gated"], times["conv"])
                if kind == "up":
                    report.ratio(f"nearest_conv_{size}_{name}_to_one_by_one", times["conv"], times["one_by_one"])


class NearestThenConv(nn.Module):
    """What ``ConvUp`` answers, by its two parts one after the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor, fine: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def layer_run(
    layer: nn.Module, rows: int, channels: int, size: int, emb: int, dtype: torch.dtype, device: torch.device,
    passes: int,
) -> Callable[[], float]:
    """Seconds of as many forward and backward passes of a resampling layer, filters laid out channels last."""
    layer = layer.to(device, dtype).to(memory_format=torch.channels_last)
    x = torch.randn(rows, channels, size, size, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    x.requires_grad_()
    e = torch.randn(rows, emb, device=device, dtype=dtype)
    down = isinstance(layer, WaveletDown | ConvDown)
    fine = torch.randn(rows, channels, 2 * size, 2 * size, device=device, dtype=dtype, requires_grad=True)
    fine = fine.to(memory_format=torch.channels_last)

    def run() -> None:
        for _ in range(passes):
            y = layer(x, e) if down else layer(x, e, fine)
            y.sum().backward()

    return lambda: elapsed(run, device)


def precision(setting: Setting, report: Report) -> None:
    """bf16 and the chosen memory format beside fp32 as torch has it, and the share of this machine's peak."""
    device = setting.device
    report.title("A training step with bf16 and the faster memory format / with fp32 in torch's own format")
    setting.note_formats(report)
    goal = "<= 0.5" if device.type == "cpu" and multiplies_bf16() else ""  # asked of CPUs with AMX
    steps = {}
    for name in setting.formats:
        how: Any = {"bf16": name == "bf16", "device": device, "layout": "auto" if name == "bf16" else "off"}
        steps[f"stage_2_{name}"] = stage_2_step(setting.flow, setting.stage_1, **how)
        steps[f"stage_1_{name}"] = stage_1_step(setting.stage_1, **how)
    times = setting.interleaved({name: timed(step, device) for name, step in steps.items()})
    for stage in ("stage_2", "stage_1") if "bf16" in setting.formats else ():
        report.ratio(f"{stage}_bf16_to_fp32", times[f"{stage}_bf16"], times[f"{stage}_fp32"], goal)

    report.title("Work of a step, and its share of the largest product's and convolution's speed here")
    for name, dtype in setting.formats.items():
        speeds = {kind: peak(dtype, device, kind) for kind in ("matmul", "conv")}
        for kind, speed in speeds.items():
            report.number(f"{kind}_peak_{name}_gflops", speed / 1e9, "GFLOP/s")
        for stage in ("stage_2", "stage_1"):
            work = operations(steps[f"{stage}_{name}"])
            if name == "fp32":
                report.number(f"{stage}_step_gflop", work / 1e9, "GFLOP")
            report.number(f"{stage}_step_{name}_seconds", min(times[f"{stage}_{name}"]), "s, the shortest")
            for kind, speed in speeds.items():
                taken = times[f"{stage}_{name}"]
                report.ratio(f"{stage}_{name}_share_of_{kind}_peak", [work / speed] * len(taken), taken)


def objectives(setting: Setting, report: Report) -> None:
    """The preset's objective and the paper's, beside plain flow matching."""
    report.title("A training step, averaged over a training / that of plain flow matching")
    steppers = {
        name: benchmark.stepper(entrant, setting.bf16, setting.device)
        for name, entrant in benchmark.objectives(setting.stage_2, setting.stage_1).items()
    }
    times = setting.interleaved(steppers)
    report.ratio("default_to_flow", times["default"], times["flow"], "<= 1.10")
    report.ratio("paper_to_flow", times["paper"], times["flow"])


def recordings(setting: Setting, report: Report) -> None:
    """A step whose network calls are replayed as CUDA graphs, beside one whose kernels are started one by one."""
    report.title("A training step with train.cuda_graphs / without")
    if setting.device.type != "cuda":
        report.note("cuda_graphs", "not measured: there is no CUDA GPU")
        return
    how: Any = {"bf16": setting.bf16, "device": setting.device, "layout": "auto"}
    recorded = replace(setting.stage_2, train=replace(setting.stage_2.train, cuda_graphs=True, devices=1))
    both = {"recorded": recorded, "plain": setting.stage_2}
    times = setting.interleaved(
        {name: timed(stage_2_step(cfg, setting.stage_1, **how), setting.device) for name, cfg in both.items()}
    )
    report.ratio("cuda_graphs_to_plain", times["recorded"], times["plain"])


class Watched(DiffusionModule):
    """Times its training's steps from end to end, and after each of them one call of another loop."""

    def watch(self, other: Callable[[], float]) -> None:
        self.other = other
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.since: float | None = None

    def on_train_batch_end(self, *_: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.since is not None:
            self.ours.append(time.perf_counter() - self.since)
            self.theirs.append(self.other())
        self.since = time.perf_counter()


def pipeline(setting: Setting, report: Report) -> None:
    """A step of a Lightning training beside a loop that is written out, of the same network, data and precision."""
    from trainer import build_trainer, cache_latents

    report.title("A step of the training / of a loop written by hand, same network, plain flow matching")
    steps = 4 * setting.cfg.rounds
    accelerator: Any = "cpu" if setting.device.type == "cpu" else "gpu"
    train = replace(
        setting.stage_2.train, max_steps=steps + 2, val_every=10**6, previews=False, quality=0, accelerator=accelerator,
        devices=1, precision="bf16-mixed" if setting.bf16 else "fp32",
    )
    cfg = replace(setting.flow, data=replace(setting.stage_2.data, limit=1024), train=train)
    probe = DiffusionModule(cfg, AutoencoderModule(setting.stage_1)).train().to(setting.device)
    inputs = tuple(value.to(setting.device) for value in probe.example_inputs(cfg.data.batch_size))
    last = faster_format("auto", probe.net, inputs, setting.bf16) == torch.channels_last
    cfg = replace(cfg, train=replace(train, channels_last="on" if last else "off"))  # the same for both
    folder, data = setting.folder(), MaskDataModule(cfg.data, 0)
    data.setup()
    module = Watched(cfg, AutoencoderModule(setting.stage_1))
    set_memory_format(module, module.net, module.example_inputs(cfg.data.batch_size), cfg.train)
    cache_latents(module, data, folder)
    module.watch(by_hand(cfg, setting, data))
    trainer = build_trainer(cfg.train, folder, "loss", "min", cfg.optim.clip_norm, [])
    trainer.limit_val_batches = 0
    trainer.fit(module, datamodule=data)
    report.ratio("pipeline_to_bare_loop", module.ours[1:], module.theirs[1:], "<= 1.03")


def by_hand(cfg: Stage2Cfg, setting: Setting, data: MaskDataModule) -> Callable[[], float]:
    """Flow matching as one would write it down: the same network, batch, optimiser and averages, on tensors at hand."""
    device = setting.device
    module = DiffusionModule(cfg, AutoencoderModule(setting.stage_1))
    set_memory_format(module, module.net, module.example_inputs(cfg.data.batch_size), cfg.train)
    module.train().to(device)
    net, rows = module.net, cfg.data.batch_size
    optimizer = build_optimizer(net, cfg.optim, cfg.train.max_steps)["optimizer"]
    table = torch.randn(1024, *module.latent_shape, device=device)
    prompts = module.encode_text(data.train_set.prompts[:1024], device)
    zero = torch.zeros(rows, device=device)

    def step() -> None:
        chosen = torch.randint(min(1024, len(prompts.keep)), (rows,), device=device)
        x1 = table[chosen]
        cond = prompts[chosen].drop(torch.rand(rows, device=device) < 0.1)
        t, noise = torch.rand(rows, device=device), torch.randn_like(x1)
        x_t = torch.lerp(noise, x1, t[:, None, None, None])
        with autocast(setting.bf16, device):
            loss = (net(x_t, t, zero, cond) - (x1 - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), cfg.optim.clip_norm, foreach=True)
        optimizer.step()
        for twin in (module.average, module.teacher):
            ema_update_(twin, net, 0.999)

    return lambda: elapsed(step, device)


def waiting(setting: Setting, report: Report) -> None:
    """Share of the time of steps that passes before the batch is there, for both stages."""
    from PIL import Image

    report.title("Waiting for the next batch / step, stage 2 on cached latents and stage 1 on images")
    folder = setting.folder()
    masks = np.random.default_rng(0).random((PICTURES, 8, 8)) > 0.5
    for number, mask in enumerate(masks):
        Image.fromarray(mask.repeat(4, 0).repeat(4, 1).astype(np.uint8) * 255).save(folder / f"{number}.png")
    base = setting.stage_2.data
    flips = AugmentCfg(hflip=0.5)
    sets = {
        "animals32": replace(base, source=EmbeddedSource("animals32"), image_size=32, augment=flips),
        "icons64": replace(base, source=EmbeddedSource("icons64"), image_size=64, augment=AugmentCfg()),
        "folder": replace(base, source=FolderSource(str(folder)), image_size=32, augment=flips),
    }
    for name, data in sets.items():
        began = time.perf_counter()
        module = MaskDataModule(data, 0)
        module.setup()
        report.number(f"load_{name}_seconds", time.perf_counter() - began, f"s, {len(module.train_set):,} masks")
        wait(setting, report, name, data, module)


def wait(setting: Setting, report: Report, name: str, data: DataCfg, module: MaskDataModule) -> None:
    count = 2 * setting.cfg.rounds
    stage_1 = replace(setting.stage_1, data=data)
    steps = {
        "stage_1": stage_1_step(stage_1, bf16=setting.bf16, device=setting.device, layout="auto"),
        "stage_2": stage_2_step(
            setting.flow_on(data), stage_1, bf16=setting.bf16, device=setting.device, layout="auto"
        ),
    }
    for stage, step in steps.items():
        if stage == "stage_2":
            shape = AutoencoderModule(stage_1).latent_shape
            module.use_latents(torch.randn(module.variants, len(module.train_set), 2 * shape[0], *shape[1:]))
        batches = chain.from_iterable(repeat(module.train_dataloader()))  # epoch after epoch
        waited: list[float] = []
        whole: list[float] = []
        for number in range(count + 1):
            if number > FEWEST and sum(whole) > setting.cfg.seconds:
                break
            began = time.perf_counter()
            next(batches)
            here = time.perf_counter() - began
            seconds = elapsed(lambda step=step: step(When()), setting.device)  # type: ignore[misc]  # bound now
            if number:  # the first one warms up
                waited.append(here)
                whole.append(here + seconds)
        report.ratio(f"wait_{stage}_{name}", waited, whole, "<= 0.02")


def pixels(setting: Setting, report: Report) -> None:
    """Time per sample of stage 2 as masks grow: the same network on latents of 2 and 4 times the side."""
    report.title("Training time per sample at twice the side / at the side before")
    steps = {}
    for size in (32, 64, 128):
        data = replace(setting.stage_2.data, image_size=size, batch_size=GROWN)
        steps[size] = timed(
            stage_2_step(
                setting.flow_on(data), replace(setting.stage_1, data=data), bf16=setting.bf16, device=setting.device,
                layout="auto",
            ),
            setting.device,
        )
    times = setting.interleaved({str(size): step for size, step in steps.items()})
    report.ratio("pixels_64_to_32", times["64"], times["32"], "<= 4.2")
    report.ratio("pixels_128_to_64", times["128"], times["64"], "<= 4.2")
