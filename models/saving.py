"""What a training leaves on disk: whole checkpoints, the newest and the best; refused where they cannot be kept."""

import math
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from configs.checks import ConfigError, first_line
from configs.run_folder import go_on
from configs.whole_file import same_file, write_whole
from models.checkpoint import CheckpointError
from models.parts import is_parts, read_about, read_whole, together
from models.resume import MADE

LAST, BEST = "last.ckpt", "best.ckpt"
AT_ONCE = 3  # files on disk while one is written: the best, the last, and the new one


class SaveError(CheckpointError):
    """A checkpoint could not be written; those that were there before are whole."""

    in_all_processes = False


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's writer of checkpoint files, except that a file is whole or not there, and a failure is an error.

    (Lightning's own writes to the folder of temporary files, which may be on another disk, and swallows a
    ``PermissionError``.)
    """

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if not is_parts(Path(path)):
            return super().load_checkpoint(path, map_location, weights_only)
        about = read_about(Path(path))
        return together(read_whole(Path(path), lambda _: True), about)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            write_whole(path, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as reason:  # torch makes a RuntimeError of a full disk
            raise SaveError(path, f"could not be written ({cause(reason, path)})", kept(path.parent)) from reason


def cause(reason: BaseException, path: Path) -> str:
    """Why writing failed, in a few words."""
    while not isinstance(reason, OSError) and (earlier := reason.__cause__ or reason.__context__):
        reason = earlier
    free = shutil.disk_usage(path.parent).free / 1e6
    return f"{first_line(reason, 100)}; {free:,.0f} MB are free"


def kept(folder: Path) -> str:
    """What to do after a training that ended too soon, for an error's hint."""
    found = [name for name in (LAST, BEST) if (folder / name).exists()]
    if not found:
        return "there is no earlier checkpoint"
    return f"{folder / found[0]} is whole: go on from it with: {go_on(folder)}"


def require_space(folder: Path, module: nn.Module) -> None:
    """Raise ConfigError where the checkpoints of ``module`` (weights, two moments for those trained) have no room."""
    weights = sum(value.nbytes for value in module.state_dict().values())
    moments = sum(2 * p.nbytes for p in module.parameters() if p.requires_grad)
    files = [file for path in (folder / LAST, folder / BEST) for file in (path.iterdir() if path.is_dir() else [path])]
    found = [file.stat() for file in files if file.exists()]  # both names are often of one file
    already = sum({(each.st_dev, each.st_ino): each.st_size for each in found}.values())
    need, free = AT_ONCE * (weights + moments) - already, shutil.disk_usage(folder).free
    if free < need:
        raise ConfigError(
            f"the run folder {folder} is on a disk with {free / 1e6:,.0f} MB free, but checkpoints need about "
            f"{need / 1e6:,.0f} MB: make room, or name another folder with --train.run-dir"
        )


def made_with(trainer: L.Trainer, module: Any) -> dict[str, Any]:
    """What must stay the same for a resumed training to be an unbroken one bit by bit."""
    data = getattr(trainer, "datamodule", None)
    return {
        "precision": str(trainer.precision), "device": trainer.strategy.root_device.type,
        "processes": trainer.world_size, "batch_size": module.cfg.data.batch_size, "torch": str(torch.__version__),
        "training masks": 0 if data is None or data.streams else len(data.train_set),
    }  # fmt: skip


def move(progress: dict[str, Any], before: int, now: int, batches: int) -> None:
    """Rewrite Lightning's count of batches, of ``before`` masks each, for batches of ``now``, ``batches`` an epoch."""
    done = progress["total"]["processed"] * before // now
    for name, count in (("total", done), ("current", done % batches)):
        progress[name] = dict.fromkeys(progress[name], count)
    progress["is_last_batch"] = False


class Checkpoints(Checkpoint):
    """last.ckpt after every validation and at the end; best.ckpt where ``monitor`` was best. Resuming starts here too.

    After a resume, what the optimiser reads from the config (learning rate, betas, decay) is that of the config and not
    that of the checkpoint.
    """

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        self.folder, self.monitor, self.sign = folder, monitor, 1.0 if mode == "max" else -1.0
        self.best: float | None = None
        self.saved_at = -1  # step of the newest checkpoint

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"] if state["monitor"] == self.monitor else None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[MADE] = made_with(trainer, pl_module)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        now = made_with(trainer, pl_module)
        before = checkpoint.get(MADE, now)
        was = {name: before.get(name, value) for name, value in now.items()}  # older versions noted less
        changed = [f"{name} {was[name]} -> {value}" for name, value in now.items() if was[name] != value]
        if changed and trainer.is_global_zero:
            print(f"goes on after the masks seen so far, but not bit by bit: {', '.join(changed)}", flush=True)
        earlier, each = (made["processes"] * made["batch_size"] for made in (was, now))
        if earlier != each:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning, which declares none
            batches = data.batches_an_epoch(now["processes"], trainer.accumulate_grad_batches)
            move(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"], earlier, each, batches)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called before the optimiser's state is restored."""
        groups = trainer.optimizers[0].param_groups
        self.wanted = [{key: value for key, value in group.items() if key != "params"} for group in groups]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_at = trainer.global_step
        if not trainer.global_step:
            return
        scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
        scheduler.base_lrs = [group["initial_lr"] for group in self.wanted]
        groups = scheduler.optimizer.param_groups
        for group, wanted, share in zip(groups, self.wanted, scheduler.lr_lambdas, strict=True):
            group.update(wanted, lr=wanted["initial_lr"] * share(scheduler.last_epoch))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = float(trainer.callback_metrics[self.monitor])
        if math.isfinite(score) and (self.best is None or self.sign * score > self.sign * self.best):
            self.best = score
            self.save(trainer, BEST)
            if trainer.is_global_zero:
                same_file(self.folder / BEST, self.folder / LAST)
        else:
            self.save(trainer, LAST)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.saved_at != trainer.global_step:
            self.save(trainer, LAST)

    def save(self, trainer: L.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / name)
        self.saved_at = trainer.global_step
