"""Config -> Lightning Trainer -> a run folder with checkpoints and logs, for either stage."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from tqdm import tqdm

from autoencoder import AutoencoderModule, load_autoencoder
from configs.autoencoder_cfg import Stage1Cfg
from configs.checks import ConfigError
from configs.cli import as_text, differences, from_dict, to_dict
from configs.diffusion_cfg import Stage2Cfg
from configs.run_folder import choose_run_dir, describe_run, newest_complete
from configs.shipped import checkpoint_path
from configs.trainer_cfg import TrainerCfg
from data.datasets import to_tensor
from data.masks import DataError
from data.module import MaskDataModule
from data.sources import data_fingerprint
from diffusion import DiffusionModule, load_diffusion
from metrics.callbacks import ReconstructionMonitor, SamplePreview
from metrics.progress import StepProgress
from metrics.quality import Prompted, QualityMonitor
from models.checkpoint import CheckpointError, read_checkpoint
from models.export import KEY
from models.hardware import first_device, precision_for, processes, set_memory_format
from models.optim import reseed


class StepRoutine(Callback):
    """What surrounds each step: the random stream, gradient clipping, and the logged gradient norm and throughput."""

    def __init__(self, cfg: TrainerCfg, clip_norm: float, batch_size: int) -> None:
        self.cfg, self.clip_norm, self.batch_size = cfg, clip_norm, batch_size
        self.since: tuple[float, int] | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        reseed(self.cfg.seed, trainer.global_step, trainer.global_rank, batch_idx % self.cfg.accumulate)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm or float("inf"), foreach=True)
        if trainer.global_step % self.cfg.log_every == 0:
            full = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            pl_module.log("train/grad_norm", full)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step % self.cfg.log_every or (self.since and self.since[1] == step):
            return
        now = time.monotonic()
        if self.since:
            seen = (step - self.since[1]) * self.batch_size * self.cfg.accumulate * trainer.world_size
            pl_module.log("train/masks_per_second", seen / (now - self.since[0]))
        self.since = now, step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = None  # a validation is no training time


def quiet() -> None:
    """Silence the advice of libraries that our users cannot act on; warnings of this project stay."""
    for name in (
        "lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*", ".*litlogger.*", ".*isinstance.treespec.*", ".*exists and is not empty.*",
        ".*in eval mode at the start of training.*", ".*smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", text)


def resume_path(cfg: Stage1Cfg | Stage2Cfg, run_dir: Path, kind: str) -> Path | None:
    """The checkpoint to go on from, or None; prints what differs from its config.

    Raises CheckpointError for a named one that cannot be used; "auto" warns and falls back to an older one.
    """
    train, make = cfg.train, "a training of this stage"
    if train.resume == "none":
        return None
    found = [Path(train.resume)]
    if train.resume == "auto":
        found = sorted(run_dir.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        try:
            old = from_dict(type(cfg), read_checkpoint(path, kind, make)[KEY]["config"])
        except CheckpointError as reason:
            if train.resume != "auto":
                raise
            warnings.warn(f"{reason}; trying an older one", stacklevel=2)
            continue
        print(f"resuming from {path}", *differences(old, cfg), sep="\n  ", flush=True)
        return path
    print(f"{run_dir} holds no checkpoint to resume from: starting anew", flush=True)
    return None


def strategy_for(cfg: TrainerCfg, devices: int, nodes: int) -> Strategy | str:
    shares = {"fsdp": (devices * nodes, 1), "hybrid": (nodes, devices)}  # models/sharding.py says what they mean
    if cfg.strategy in shares:
        return ModelParallelStrategy(*shares[cfg.strategy], save_distributed_checkpoint=False)
    return DDPStrategy() if cfg.strategy == "ddp" or devices * nodes > 1 else "auto"


def build_trainer(
    cfg: TrainerCfg, run_dir: Path, monitor: str, mode: str, clip_norm: float, batch_size: int, extra: list[Callback]
) -> L.Trainer:
    """The Trainer of either stage; ``monitor`` decides best.ckpt."""
    devices, nodes = processes(cfg)
    checkpoint = ModelCheckpoint(
        dirpath=run_dir, filename="best", monitor=monitor, mode=mode, save_last=True, save_on_exception=True,
        enable_version_counter=False,
    )
    routine = StepRoutine(cfg, clip_norm, batch_size)
    return L.Trainer(
        accelerator=cfg.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy_for(cfg, devices, nodes),
        precision=precision_for(cfg),  # type: ignore[arg-type]  # one of Lightning's literals
        max_epochs=-1,
        max_steps=cfg.max_steps,
        max_time=timedelta(minutes=cfg.max_minutes) if cfg.max_minutes else None,
        accumulate_grad_batches=cfg.accumulate,
        val_check_interval=min(cfg.val_every, cfg.max_steps) * cfg.accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=cfg.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        logger=[TensorBoardLogger(run_dir, name="", version="tensorboard"), CSVLogger(run_dir, name="", version="csv")],
        callbacks=[checkpoint, routine, StepProgress(), LearningRateMonitor("step"), *extra],
    )


def start(cfg: Stage1Cfg | Stage2Cfg, name: str, kind: str) -> tuple[Path, MaskDataModule]:
    """What both stages do first: run folder, saved config, seed and data."""
    quiet()
    print(as_text(cfg), flush=True)
    L.seed_everything(cfg.train.seed, verbose=False)
    run_dir = choose_run_dir(cfg.train, name)
    data = MaskDataModule(cfg.data, cfg.train.seed)
    try:
        data.prepare_data()
        data.setup("fit")
    except DataError:
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # only if it is empty: a training that cannot start leaves nothing behind
        raise
    (run_dir / "config.json").write_text(json.dumps(to_dict(cfg), indent=2) + "\n")
    describe_run(run_dir, kind, data_fingerprint(cfg.data), "unfinished")
    print(f"data: {len(data.train_set):,} masks to train on, {len(data.val_set):,} held out", flush=True)
    return run_dir, data


def fit(trainer: L.Trainer, module: Any, data: MaskDataModule, resume: Path | None, run_dir: Path, kind: str) -> None:
    """Train, then write last.ckpt marked as complete; an interrupted training stays marked as unfinished."""
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.interrupted or trainer.global_step == 0:
        return
    if isinstance(module, AutoencoderModule):
        images = data.train_set.images
        module.measure_latents(to_tensor(images[start : start + 256]) for start in range(0, len(images), 256))
    module.complete = True
    trainer.save_checkpoint(run_dir / "last.ckpt")
    if trainer.is_global_zero:
        describe_run(run_dir, kind, module.data, "complete")
        print(f"complete: {run_dir / 'last.ckpt'}", flush=True)


def train_stage_1(cfg: Stage1Cfg, name: str) -> Path:
    """Train the autoencoder; returns the run folder, which holds last.ckpt and best.ckpt."""
    run_dir, data = start(cfg, f"{name}-stage1", "autoencoder")
    module = AutoencoderModule(cfg, data_fingerprint(cfg.data))
    pixels = torch.rand(cfg.data.batch_size, cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
    set_memory_format(module, module.vae.encoder, (pixels,), cfg.train)
    extra: list[Callback] = [ReconstructionMonitor()]
    monitor, mode = ("val/iou", "max") if cfg.data.channels == 1 else ("val/loss", "min")
    trainer = build_trainer(cfg.train, run_dir, monitor, mode, cfg.optim.clip_norm, cfg.data.batch_size, extra)
    fit(trainer, module, data, resume_path(cfg, run_dir, "autoencoder"), run_dir, "autoencoder")
    return run_dir


def find_autoencoder(cfg: Stage2Cfg) -> Path:
    """The newest complete stage-1 checkpoint of the same data, or the one that ``cfg.autoencoder`` names."""
    if cfg.autoencoder != "auto":
        return Path(cfg.autoencoder)
    wanted = data_fingerprint(cfg.data)
    newest = newest_complete(cfg.train.runs, "autoencoder", wanted)
    if newest is None:
        raise CheckpointError(
            Path(cfg.train.runs), f"holds no complete stage-1 training of the data set {wanted}",
            "make one with: bash scripts/train_stage_1.sh PRESET (the same preset and data as this stage 2), "
            "or name one with --autoencoder PATH",
        )
    return newest


def take_over(cfg: Stage2Cfg) -> tuple[Stage2Cfg, DiffusionModule | None]:
    """What ``cfg.init`` decides (network and text settings), and its model; without one, ``cfg`` as it is."""
    if not cfg.init:
        return cfg, None
    if cfg.autoencoder != "auto":
        raise ConfigError(f"init is {cfg.init!r}, which brings its own autoencoder: leave autoencoder at auto, "
                          f"not {cfg.autoencoder!r}")  # fmt: skip
    source = load_diffusion(checkpoint_path(cfg.init))
    return replace(cfg, backbone=source.cfg.backbone, text=source.cfg.text), source


def checked_autoencoder(cfg: Stage2Cfg, source: DiffusionModule | None = None) -> AutoencoderModule:
    """Stage 1's network for this stage 2. Raises CheckpointError for a missing, unfinished or foreign one."""
    if source is not None:
        fitting(Path(cfg.init), source.autoencoder, cfg, "name a model of your masks' size with --init")
        return source.autoencoder
    path = find_autoencoder(cfg)
    make = "bash scripts/train_stage_1.sh PRESET (the same preset and data as this stage 2)"
    autoencoder = load_autoencoder(path, make)
    if not autoencoder.complete:
        raise CheckpointError(
            path, "is of a stage-1 training that was not finished",
            f"continue it with: bash scripts/train_stage_1.sh PRESET --train.run-dir {path.parent} --train.resume auto",
        )
    fitting(path, autoencoder, cfg, f"make one with: {make}")
    print(f"autoencoder: {path}", flush=True)
    return autoencoder


def fitting(path: Path, autoencoder: AutoencoderModule, cfg: Stage2Cfg, hint: str) -> None:
    """Raises CheckpointError for an autoencoder of other images than those of ``cfg``."""
    theirs, ours = autoencoder.cfg.data, cfg.data
    if (theirs.image_size, theirs.channels) != (ours.image_size, ours.channels):
        raise CheckpointError(
            path, f"was trained on {theirs.image_size}-pixel images of {theirs.channels} channel(s), but this stage 2 "
            f"has {ours.image_size} and {ours.channels}", hint,
        )


@torch.no_grad()
def cache_latents(module: DiffusionModule, data: MaskDataModule) -> None:
    """Encode the training split once, if its augmentation has few enough variants, for the loader to draw from."""
    cfg = module.cfg.data
    if not (cfg.cache_latents and (cfg.augment.is_none or cfg.augment.only_hflip)):
        return
    variants: dict[int, list[torch.Tensor]] = {}
    device = first_device(module.cfg.train)
    encoder = module.autoencoder.to(device)
    total = len(data.train_set) * (1 if cfg.augment.is_none else 2)
    with tqdm(total=total, desc="encoding", unit=" masks", mininterval=1.0) as bar:
        for variant, _, x in data.variant_batches(256):
            posterior = encoder.posterior(x.float().to(device))
            variants.setdefault(variant, []).append(torch.cat([posterior.mean, posterior.logvar], dim=1).cpu())
            bar.update(len(x))
    data.use_latents(torch.stack([torch.cat(parts) for _, parts in sorted(variants.items())]))


def train_stage_2(cfg: Stage2Cfg, name: str) -> Path:
    """Train the diffusion network on a finished stage 1; returns the run folder."""
    cfg, source = take_over(cfg)
    autoencoder = checked_autoencoder(cfg, source)
    run_dir, data = start(cfg, f"{name}-stage2", "diffusion")
    module = DiffusionModule(cfg, autoencoder, data_fingerprint(cfg.data))
    if source is not None:
        for twin in (module.net, module.average, module.teacher):
            twin.load_state_dict(source.average.state_dict())
        print(f"begins with the weights of {checkpoint_path(cfg.init)}", flush=True)
    set_memory_format(module, module.net, module.example_inputs(cfg.data.batch_size), cfg.train)
    cache_latents(module, data)
    extra: list[Callback] = [SamplePreview(data.val_set.prompts, cfg.train.seed)] if cfg.train.previews else []
    monitor = "val/loss"
    if cfg.train.quality and cfg.data.channels == 1 and len(data.val_set) > 1:
        train, held_out = (Prompted(torch.from_numpy(x.images), x.prompts) for x in (data.train_set, data.val_set))
        extra.append(QualityMonitor(train, held_out, cfg.train.quality, cfg.train.seed, run_dir))
        monitor = "val/frechet_1"
    trainer = build_trainer(cfg.train, run_dir, monitor, "min", cfg.optim.clip_norm, cfg.data.batch_size, extra)
    fit(trainer, module, data, resume_path(cfg, run_dir, "diffusion"), run_dir, "diffusion")
    return run_dir
