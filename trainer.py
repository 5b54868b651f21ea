"""Config -> Lightning Trainer -> a run folder with checkpoints and logs, for either stage."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from tqdm import tqdm

from autoencoder import AutoencoderModule, autoencoder_of, load_autoencoder
from configs.autoencoder_cfg import Stage1Cfg
from configs.beginning import (
    going_on,
    grown,
    require_attention,
    require_curriculum,
    require_startable,
    taken_over,
)
from configs.cli import as_text, differences, from_dict, to_dict
from configs.data_cfg import EmbeddedSource, FolderSource
from configs.diffusion_cfg import Stage2Cfg
from configs.run_folder import (
    choose_run_dir,
    describe_run,
    is_complete,
    is_first,
    launched_by_torchrun,
    newest_complete,
    release,
)
from configs.shipped import checkpoint_path
from configs.trainer_cfg import TrainerCfg
from configs.whole_file import write_text
from data.datasets import to_tensor
from data.folder import find_folder
from data.latent_file import keep_latents, latents_key, read_latents
from data.masks import DataError
from data.module import MaskDataModule
from data.sources import data_fingerprint
from diffusion import DiffusionModule, load_diffusion
from metrics.callbacks import Drawing, ReconstructionMonitor, SamplePreview
from metrics.geometry import are_captions
from metrics.progress import StepProgress
from metrics.quality import Prompted, QualityMonitor
from metrics.run_report import report_if_possible
from metrics.trackers import build_loggers, close, require_packages
from models.agreement import weights_digest
from models.checkpoint import CheckpointError, whole
from models.cuda_graphs import advice, replay_calls, require_one_gpu
from models.export import KEY, MAKE
from models.hardware import (
    compile_networks,
    first_device,
    low_precision,
    precision_for,
    processes,
    require_processes,
    set_memory_format,
    tasks_of_srun,
)
from models.resume import UNDO, Resume, as_before, find_resume, require_fit
from models.saving import LAST, Checkpoints, WholeCheckpoints, require_space
from models.sharding import SharedOut
from models.steps import StepRoutine, WholeStepTimer
from models.stopping import GracefulStop, together

AnyStage = TypeVar("AnyStage", Stage1Cfg, Stage2Cfg)


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
        ".*ended before the epoch ended.*",  # our loaders go on where it ended
    ):
        warnings.filterwarnings("ignore", text)


def strategy_for(cfg: TrainerCfg, devices: int, nodes: int) -> Strategy | str:
    shares = {"fsdp": (devices * nodes, 1), "hybrid": (nodes, devices)}  # models/sharding.py says what they mean
    timeout = timedelta(seconds=cfg.timeout)
    if cfg.strategy in shares:
        return SharedOut(*shares[cfg.strategy], cfg.checkpoint_parts, timeout)
    return DDPStrategy(timeout=timeout) if cfg.strategy == "ddp" or devices * nodes > 1 else "auto"


def starters() -> list[ClusterEnvironment]:
    """What keeps Lightning from taking the tasks of a SLURM job for processes of a training that none of them is."""
    if "SLURM_JOB_ID" not in os.environ or launched_by_torchrun():
        return []
    return [SLURMEnvironment(auto_requeue=False) if tasks_of_srun() > 1 else LightningEnvironment()]


def build_trainer(
    cfg: TrainerCfg, run_dir: Path, monitor: str, mode: str, clip_norm: float, extra: list[Callback]
) -> L.Trainer:
    """The Trainer of either stage; ``monitor`` decides best.ckpt."""
    devices, nodes = processes(cfg)
    checkpoints, routine = Checkpoints(run_dir, monitor, mode), StepRoutine(cfg, clip_norm, run_dir)
    stop = GracefulStop(run_dir)
    limit = [WholeStepTimer(timedelta(minutes=cfg.max_minutes))] if cfg.max_minutes else []
    for callback in extra:
        if isinstance(callback, Drawing):
            callback.pause = stop.pause
    return L.Trainer(
        accelerator=cfg.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy_for(cfg, devices, nodes),
        precision=precision_for(cfg),  # type: ignore[arg-type]  # one of Lightning's literals
        max_epochs=-1,
        max_steps=cfg.max_steps,
        accumulate_grad_batches=cfg.accumulate,
        val_check_interval=min(cfg.val_every, cfg.max_steps) * cfg.accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=cfg.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        logger=build_loggers(cfg, run_dir),
        default_root_dir=run_dir,
        callbacks=[stop, routine, *limit, StepProgress(), LearningRateMonitor("step"), *extra, checkpoints],
        plugins=[WholeCheckpoints(), *starters()],
    )


def start(cfg: Stage1Cfg | Stage2Cfg, name: str, kind: str) -> tuple[Path, MaskDataModule]:
    """What both stages do first: run folder, seed and data."""
    quiet()
    require_packages(cfg.train)
    print(as_text(cfg), flush=True)
    L.seed_everything(cfg.train.seed, verbose=False)
    require_processes(cfg.train)
    run_dir = choose_run_dir(cfg.train, name)
    data = MaskDataModule(cfg.data, cfg.train.seed)
    with leaving_nothing(run_dir):
        data.prepare_data()
        data.setup("fit")
        if kind == "diffusion" and not cfg.data.augment.is_none and are_captions(data.train_set.prompts):
            raise DataError(
                f"prompts such as {data.train_set.prompts[0]!r} say where things are, which is false of a mask that "
                "is mirrored, turned or moved: leave data.augment.hflip, vflip, rot90, affine and elastic at 0, and "
                "take --data.augment.versions, which makes captions anew"
            )
        if isinstance(cfg, Stage2Cfg) and cfg.reader.only and not are_captions(data.train_set.prompts):
            raise DataError(
                f"reader.only is True, but prompts such as {data.train_set.prompts[0]!r} are no captions of geometry, "
                "which is all that the reader reads: set it to False"
            )
    seen = "a stream of shards" if data.streams else f"{len(data.train_set):,} masks"
    print(f"data: {seen} to train on, {len(data.val_set):,} held out", flush=True)
    return run_dir, data


@contextlib.contextmanager
def leaving_nothing(run_dir: Path) -> Iterator[None]:
    """A training that is refused gives its folder back, and removes it if it is empty."""
    try:
        yield
    except BaseException:
        release(run_dir)
        with contextlib.suppress(OSError):
            run_dir.rmdir()
        raise


def fit(
    build: Callable[[], L.Trainer], module: Any, data: MaskDataModule, resume: Resume | None, run_dir: Path, kind: str
) -> None:
    """Train, then write last.ckpt marked as complete; a training that ends before stays marked as unfinished.

    Until all that can be refused has been, the folder's config.json and run.json are those of an earlier training.
    """
    trainer = None
    try:
        if resume is not None:
            require_fit(resume.path, resume.content["state_dict"], module, resume.changed)
        if is_first():
            require_space(run_dir, module)
        with replaced(run_dir / "config.json", json.dumps(to_dict(module.cfg), indent=2) + "\n"):
            trainer = build()  # trackers read it
        if is_first():
            describe_run(run_dir, kind, module.data, "unfinished")
        # Lightning sets callbacks on its trainer without declaring them.
        stop = next(callback for callback in trainer.callbacks if isinstance(callback, GracefulStop))  # type: ignore[attr-defined]
        stop.facts = facts(module, data, resume)
        with together(trainer, stop):
            trainer.fit(module, datamodule=data, ckpt_path=resume.path if resume else None, weights_only=True)
            finish(trainer, module, data, run_dir, kind)
    except BaseException:
        if trainer is not None:
            trainer.fit_loop.teardown()  # Lightning leaves its loaders' processes where a validation was broken off
        raise
    finally:
        if trainer is not None:
            close(trainer.loggers)
            if trainer.is_global_zero and trainer.global_step:
                report_if_possible(run_dir)
        release(run_dir)


def facts(module: Any, data: MaskDataModule, resume: Resume | None) -> dict[str, object]:
    """What all processes of a training must have found alike; each reads the disk for itself."""
    found: dict[str, object] = {
        "the step to resume from": resume.content["global_step"] if resume else 0,
        "the masks to train on": data.train_set.digest,
        "the held-out masks": data.val_set.digest,
    }
    if isinstance(module, DiffusionModule):
        found["the autoencoder"] = weights_digest(module.autoencoder.state_dict())
    if module.cfg.init and resume is None:
        begun = module.net if isinstance(module, DiffusionModule) else module
        found["the model of init"] = weights_digest(begun.state_dict())
    return found


@contextlib.contextmanager
def replaced(path: Path, text: str) -> Iterator[None]:
    """``text`` in a file that the first process writes; what was there before if an error follows."""
    if not is_first():
        yield
        return
    before = path.read_text(encoding="utf-8") if path.exists() else None
    write_text(path, text)
    try:
        yield
    except BaseException:
        if before is not None:
            write_text(path, before)
        raise


def finish(trainer: L.Trainer, module: Any, data: MaskDataModule, run_dir: Path, kind: str) -> None:
    if trainer.global_step == 0:
        return
    if isinstance(module, AutoencoderModule) and not module.cfg.init:
        images = data.train_set.images
        if not isinstance(trainer.strategy, SharedOut):
            module.to(trainer.strategy.root_device)  # Lightning has put it back into the processor's memory
        with low_precision(module.cfg.train):
            module.measure_latents(to_tensor(images[start : start + 256]) for start in range(0, len(images), 256))
    module.complete = True
    trainer.save_checkpoint(run_dir / LAST)
    if trainer.is_global_zero:
        describe_run(run_dir, kind, module.data, "complete")
        print(f"complete: {run_dir / LAST}", flush=True)


def train_stage_1(cfg: Stage1Cfg, name: str) -> Path:
    """Train the autoencoder; returns the run folder, which holds last.ckpt and best.ckpt."""
    resume, source = find_resume(cfg, "autoencoder"), None
    if resume is not None:
        if resume.nothing_to_do(cfg.train):
            return resume.path.parent
        cfg = replace(cfg, train=as_before(cfg.train, resume.content))
        begun = from_dict(Stage1Cfg, resume.content[KEY]["config"])
        cfg = replace(cfg, init=begun.init)  # which decides what learns
        cfg = grown(cfg, begun) if cfg.init else cfg
    elif cfg.init:
        source = finished_autoencoder(checkpoint_path(cfg.init), "bash scripts/train_stage_1.sh PRESET")
        cfg = told(cfg, grown(cfg, source.cfg))
    run_dir, data = start(cfg, f"{name}-stage1", "autoencoder")
    with leaving_nothing(run_dir):
        module, rows = AutoencoderModule(cfg, data_fingerprint(cfg.data)).with_judges(), cfg.data.batch_size
        if source is not None:
            module.grow_from(source)
            print(f"begins with the weights of {checkpoint_path(cfg.init)}, whose encoder stays as it is", flush=True)
            warn_of_known(cfg, source.data)
        if cfg.init:  # only the decoder learns
            set_memory_format(module, module.vae.decoder, (torch.randn(rows, *module.latent_shape),), cfg.train)
        else:
            pixels = torch.rand(rows, cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
            set_memory_format(module, module.vae.encoder, (module.vae.squares(pixels),), cfg.train)
        compile_networks([module.vae.encoder, module.vae.decoder], cfg.train)
    extra: list[Callback] = [ReconstructionMonitor()]
    monitor, mode = ("val/iou", "max") if cfg.data.channels == 1 else ("val/loss", "min")
    build = partial(build_trainer, cfg.train, run_dir, monitor, mode, cfg.optim.clip_norm, extra)
    fit(build, module, data, resume, run_dir, "autoencoder")
    return run_dir


def warn_of_known(cfg: Stage1Cfg | Stage2Cfg, known: str) -> None:
    """Say that a model learned from what is held out now: the split goes by a mask's pixels, which sizes have their
    own of. ``known`` is the fingerprint of the data of the model that ``cfg.init`` names.
    """
    source = cfg.data.source
    if not (
        (isinstance(source, FolderSource) and not source.test)
        or (isinstance(source, EmbeddedSource) and source.name != "collages64")
    ):
        return  # whose held-out masks are the same at each size
    (ours, size, _), (theirs, other, _) = (f"  {data}".rsplit(" ", 2) for data in (data_fingerprint(cfg.data), known))
    if ours == theirs and size != other:
        warnings.warn(
            f"init {cfg.init!r} was trained on the same masks at another size ({other}), where other ones are held "
            "out: it knows most of those held out here, and their numbers look better than they are. Name masks of "
            "their own with --data.source.test", stacklevel=2,
        )  # fmt: skip


def find_autoencoder(cfg: Stage2Cfg, source: DiffusionModule | None = None) -> Path | None:
    """The stage-1 checkpoint that ``cfg.autoencoder`` names, or the newest complete one of the same data; beside
    ``source``, the model that ``cfg.init`` names, one that grew from its own, or None for its own.

    Raises:
        CheckpointError: there is none.
        DataError: nor is there the folder of the data.
    """
    if cfg.autoencoder != "auto":
        return checkpoint_path(cfg.autoencoder)
    if source is not None and source.autoencoder.cfg.data.image_size == cfg.data.image_size:
        return None
    wanted = data_fingerprint(cfg.data)

    def fits(path: Path) -> bool:
        if source is None:
            return True
        try:
            return load_autoencoder(path).shares_latents(source.autoencoder)
        except (CheckpointError, ModuleNotFoundError) as reason:
            warnings.warn(f"passed over: {reason}", stacklevel=2)
            return False

    newest = newest_complete(cfg.train.runs, "autoencoder", wanted, fits)
    if newest is None and source is None:
        if isinstance(cfg.data.source, FolderSource):
            find_folder(cfg.data.source.train, "--data.source.train")
        raise CheckpointError(
            Path(cfg.train.runs), f"holds no complete stage-1 training of the data set {wanted}",
            "make one with: bash scripts/train_stage_1.sh PRESET (the same preset and data as this stage 2), "
            "name one with --autoencoder PATH, or begin with a model that has one, such as --init icons (64 pixels)",
        )
    return newest


def take_over(cfg: Stage2Cfg) -> tuple[Stage2Cfg, DiffusionModule | None]:
    """What ``cfg.init`` decides (network and text settings), and its model; without one, ``cfg`` as it is."""
    if not cfg.init:
        require_startable(cfg)
        return cfg, None
    source = load_diffusion(checkpoint_path(cfg.init))
    return told(cfg, taken_over(cfg, source.cfg)), source


def told(asked: AnyStage, taken: AnyStage) -> AnyStage:
    """``taken``, after it was printed in what it differs from what was asked for."""
    if changed := differences(asked, taken):
        print(f"settings of init {asked.init!r} in place of those asked for: {', '.join(changed)}", flush=True)
    return taken


def continued(cfg: Stage2Cfg, resume: Resume) -> tuple[Stage2Cfg, AutoencoderModule]:
    """``cfg`` as far as its first start had decided it, and the autoencoder of the checkpoint, not one made since."""
    if cfg.init or cfg.critic.width:
        cfg = going_on(cfg, from_dict(Stage2Cfg, resume.content[KEY]["config"]))
    with whole(resume.path, MAKE):
        autoencoder = autoencoder_of(resume.content)
    fitting(resume.path, autoencoder, cfg, UNDO)
    return replace(cfg, train=as_before(cfg.train, resume.content)), autoencoder


def checked_autoencoder(cfg: Stage2Cfg, source: DiffusionModule | None = None) -> AutoencoderModule:
    """Stage 1's network for this stage 2. Raises CheckpointError for a missing, unfinished or foreign one."""
    path = find_autoencoder(cfg, source)
    if path is None:
        assert source is not None
        fitting(Path(cfg.init), source.autoencoder, cfg, "name a model of your masks' size with --init, or "
                f"let it grow to a multiple of its size first: bash scripts/train_stage_1.sh PRESET --init {cfg.init}")
        return source.autoencoder
    make = "bash scripts/train_stage_1.sh PRESET (the same preset and data as this stage 2)"
    autoencoder = finished_autoencoder(path, make)
    fitting(path, autoencoder, cfg, f"make one with: {make}")
    if source is not None and not autoencoder.shares_latents(source.autoencoder):
        raise CheckpointError(
            path, f"has other latents than init {cfg.init!r}, whose network draws those of its own",
            f"name one that grew from it (bash scripts/train_stage_1.sh PRESET --init {cfg.init}) with --autoencoder, "
            "or take --autoencoder auto for masks of its own size",
        )
    print(f"autoencoder: {path}", flush=True)
    return autoencoder


def finished_autoencoder(path: Path, make: str) -> AutoencoderModule:
    """Of a checkpoint of either stage. Raises CheckpointError where that of stage 1 is not of a finished training."""
    autoencoder = load_autoencoder(path, make)
    if not autoencoder.complete and path.name != LAST and is_complete(path.with_name(LAST)):
        raise CheckpointError(path, "was kept on the way, before its training was over",
                              f"name the last one of its training: {path.with_name(LAST)}")  # fmt: skip
    if not autoencoder.complete:
        raise CheckpointError(
            path, "is of a stage-1 training that was not finished",
            f"continue it with: bash scripts/train_stage_1.sh PRESET --train.run-dir {path.parent} --train.resume auto",
        )
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
def cache_latents(module: DiffusionModule, data: MaskDataModule, folder: Path) -> None:
    """Encode the training split, if its augmentation has few enough variants, for the loader to draw from.

    What was encoded stays in ``folder``, for the next training on the same masks and autoencoder.
    """
    cfg = module.cfg.data
    if data.streams or not (cfg.cache_latents and (cfg.augment.is_none or cfg.augment.only_hflip)):
        return  # the frozen encoder works in each step
    variants: dict[int, list[torch.Tensor]] = {}
    device = first_device(module.cfg.train)
    encoder = module.autoencoder.to(device)
    used = {name: value for name, value in encoder.state_dict().items() if not name.startswith("vae.")}
    how = f"{data.variants} {precision_for(module.cfg.train)} {device.type} {weights_digest(used)}"
    key = latents_key(data.train_set.images, how)
    known = read_latents(folder, key)
    sketches = module.net.sketch is not None  # which are made of the masks
    if known is not None:
        return data.use_latents(known, sketches)
    total = len(data.train_set) * (1 if cfg.augment.is_none else 2)
    with tqdm(total=total, desc="encoding", unit=" masks", mininterval=1.0) as bar, low_precision(module.cfg.train):
        for variant, _, x in data.variant_batches(256):
            posterior = encoder.posterior(x.float().to(device))
            variants.setdefault(variant, []).append(torch.cat([posterior.mean, posterior.logvar], dim=1).cpu())
            bar.update(len(x))
    moments = torch.stack([torch.cat(parts) for _, parts in sorted(variants.items())])
    keep_latents(folder, key, moments)
    known = read_latents(folder, key)  # mapped from the file, which all processes of a machine then share
    data.use_latents(moments if known is None else known, sketches)


def train_stage_2(cfg: Stage2Cfg, name: str) -> Path:
    """Train the diffusion network on a finished stage 1; returns the run folder."""
    require_one_gpu(cfg.train)
    resume = find_resume(cfg, "diffusion")
    source = None
    if resume is None:
        require_curriculum(cfg)
        cfg, source = take_over(cfg)
        autoencoder = checked_autoencoder(cfg, source)
        if source is None:
            require_attention(cfg.backbone, autoencoder.latent_shape[-1])
    elif resume.nothing_to_do(cfg.train):
        return resume.path.parent
    else:
        cfg, autoencoder = continued(cfg, resume)
    run_dir, data = start(cfg, f"{name}-stage2", "diffusion")
    with leaving_nothing(run_dir):
        module = DiffusionModule(cfg, autoencoder, data_fingerprint(cfg.data))
        if source is not None:
            module.begin_with(source)
            print(f"begins with the weights of {checkpoint_path(cfg.init)}", flush=True)
            warn_of_known(cfg, source.data)
        module.with_critic()
        set_memory_format(module, module.net, module.example_inputs(cfg.data.batch_size), cfg.train)
        cache_latents(module, data, Path(cfg.train.runs) / "latents")
        compile_networks([module.net, module.teacher], cfg.train)
        replay_calls([module.net, module.teacher], cfg.train)
    if hint := advice(cfg.train):
        print(hint, flush=True)
    module.encode_text.padded = cfg.train.compile or cfg.train.cuda_graphs
    extra: list[Callback] = [SamplePreview(data.val_set.prompts, cfg.train.seed)] if cfg.train.previews else []
    monitor, mode = ("val/loss", "min") if not cfg.reader.only else ("val/as_asked", "max")
    frozen = cfg.sketch.only or cfg.reader.only  # the network, whose masks would be judged alike at each validation
    if cfg.train.quality and not frozen and cfg.data.channels == 1 and min(len(data.as_read), len(data.val_set)) > 1:
        train, held_out = (Prompted(torch.from_numpy(x.images), x.prompts) for x in (data.as_read, data.val_set))
        quality = QualityMonitor(train, held_out, cfg.train.quality, cfg.train.seed, run_dir)
        extra.append(quality)
        monitor, mode = quality.chosen(module), "min"
    build = partial(build_trainer, cfg.train, run_dir, monitor, mode, cfg.optim.clip_norm, extra)
    fit(build, module, data, resume, run_dir, "diffusion")
    return run_dir
