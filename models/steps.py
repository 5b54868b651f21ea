"""What surrounds each training step: the random stream, gradient clipping, throughput, and numbers that are none."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Timer
from torch import Tensor, distributed

from configs.trainer_cfg import TrainerCfg
from models.optim import reseed
from models.saving import kept

HALVINGS = 24  # updates in a row that fp16 may leave out while its loss scale falls


class NonFiniteError(RuntimeError):
    """A loss or gradient was no finite number, more often in a row than the config allows."""

    in_all_processes = True


def logs_after(step: int, cfg: TrainerCfg) -> bool:
    """Whether Lightning writes what is logged in the training step after ``step`` others: in the last of each interval.

    What was logged before would be written as that step's, or forgotten where an epoch ends in between.
    """
    return (step + 1) % cfg.log_every == 0


def time_used(trainer: L.Trainer) -> float:
    """Share of a training's time limit that is over; 0 where there is none."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets them without declaring them
    timer = next((callback for callback in callbacks if isinstance(callback, Timer)), None)
    left = timer.time_remaining() if timer else None
    return timer.time_elapsed() / (timer.time_elapsed() + left) if timer and left is not None else 0.0


class WholeStepTimer(Timer):
    """Lightning's time limit, which ends a training only after an update: never with gradients still being added up."""

    step = -1

    @property
    def state_key(self) -> str:
        return "Timer"

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step != self.step:
            super().on_train_batch_end(trainer, *args, **kwargs)


class StepRoutine(Callback):
    """The random stream, time used, gradient clipping, the logged gradient norm and speed, the watch on the numbers.

    An update whose gradient is not finite is left out by the optimiser's own kernel: weights and moments stay as they
    were, in all processes, since they share the gradient. The processor only reads afterwards what happened: at every
    step where that is free, else with the logged points and before each validation.
    """

    def __init__(self, cfg: TrainerCfg, clip_norm: float, folder: Path) -> None:
        self.cfg, self.clip_norm, self.folder = cfg, clip_norm, folder
        self.since: tuple[float, int] | None = None
        self.masks = 0
        """Trained on in this process since then."""
        self.norm: Tensor | None = None
        self.unread: list[tuple[int, Tensor | None, Tensor, dict[str, Tensor], Any]] = []
        self.in_a_row = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.tell_time(trainer, pl_module)  # before a resumed training's learning rate is set anew

    def tell_time(self, trainer: L.Trainer, pl_module: Any) -> None:
        """That of the first process in all of them: what is computed changes with it, and learning rates do."""
        if self.cfg.max_minutes:
            pl_module.used = trainer.strategy.broadcast(time_used(trainer))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        reseed(self.cfg.seed, trainer.global_step, trainer.global_rank, batch_idx % self.cfg.accumulate)
        self.norm = None
        self.tell_time(trainer, pl_module)
        # Lightning counts one more where it goes on from the end of a training, and would write a step too early.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """A loss that is not finite gets no finite gradient, by which all processes hear of it."""
        plain = loss.detach()
        loss.register_hook(lambda grad: torch.where(plain.isfinite(), grad, math.nan))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of fp16: it leaves out updates by itself
        if scaler is not None:
            scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm or float("inf"), foreach=True)
        self.norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if scaler is None:
            bad = ~self.norm.isfinite()
            # Fused kernels look at it. On a CPU, where the question costs nothing, they need not look at each step.
            # What torch's gradient scaler sets; fused optimisers read it, and torch does not declare it.
            optimizer.found_inf = None if bad.device.type == "cpu" and not bad else bad.float()  # type: ignore[attr-defined]
        if logs_after(trainer.global_step, self.cfg):
            pl_module.log("train/grad_norm", self.norm)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        parts = {name: value for name, value in outputs.items() if name != "loss"}
        self.unread.append((step, self.norm, outputs["loss"].detach(), parts, batch["index"]))
        self.masks += len(batch["index"])
        logged = step % self.cfg.log_every == 0
        if logged or pl_module.device.type == "cpu":
            self.read(trainer)
        if not logged or (self.since and self.since[1] == step):
            return
        now = time.monotonic()
        if self.since:
            pl_module.log("train/masks_per_second", self.masks * trainer.world_size / (now - self.since[0]))
        self.since, self.masks = (now, step), 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.read(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = None  # a validation is no training time

    def read(self, trainer: L.Trainer) -> None:
        """Count the updates that were left out. Raises NonFiniteError in all processes alike."""
        stepped = [i for i, entry in enumerate(self.unread) if entry[1] is not None]
        if not stepped:
            return
        norms = torch.stack([self.unread[i][1] for i in stepped]).tolist()  # type: ignore[misc]  # none is None
        allowed = max(self.cfg.skip_nonfinite, HALVINGS * (trainer.precision == "16-mixed"))
        first = 0
        for i, norm in zip(stepped, norms, strict=True):
            self.in_a_row = 0 if math.isfinite(norm) else self.in_a_row + 1
            if self.in_a_row > allowed:
                self.refuse(trainer, self.unread[first : i + 1])
            first = i + 1
        del self.unread[:first]

    def refuse(self, trainer: L.Trainer, batches: list[Any]) -> None:
        """Raise for the batches of one update, with what each process knows of its own."""
        own = [self.told(trainer, *entry[2:]) for entry in batches]
        found: list[Any] = [own]
        if trainer.world_size > 1:
            found = [None] * trainer.world_size
            distributed.all_gather_object(found, own)
        told = [
            f"process {rank}: {text}" if trainer.world_size > 1 else text
            for rank, texts in enumerate(found) for text in texts if text
        ]  # fmt: skip
        raise NonFiniteError(
            f"training stops at step {batches[-1][0]}, whose update was left out: "
            f"{'; '.join(told) or 'the loss is finite but its gradient is not'}; "
            f"{self.in_a_row} such step(s) in a row, train.skip_nonfinite allows {self.cfg.skip_nonfinite}; "
            f"a lower --optim.lr, --train.precision fp32 or other data may help; {kept(self.folder)}"
        )

    def told(self, trainer: L.Trainer, loss: Tensor, parts: dict[str, Tensor], index: Tensor) -> str:
        """What was not finite in one batch, and the batch's masks; "" if its loss was finite."""
        if math.isfinite(float(loss)):
            return ""
        wrong = [f"{name} {float(value):g}" for name, value in parts.items() if not math.isfinite(float(value))]
        # Lightning sets the data module on its trainer without declaring it.
        names = [trainer.datamodule.mask_name(i) for i in index.tolist()]  # type: ignore[attr-defined]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return f"loss {float(loss):g} (of its parts: {', '.join(wrong) or 'none'}) of the masks {shown}"
