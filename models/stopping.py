"""Ending a training early and in order: signals, and processes of it that are lost."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import distributed

from configs.checks import first_line
from configs.run_folder import is_child
from models.agreement import require_agreement
from models.saving import LAST, kept

SIGNALS = (signal.SIGTERM, signal.SIGINT)
INSIST = 1.0  # seconds after which a second Ctrl-C is one of a user who will not wait
PATIENCE = 5.0  # seconds that the first process gives those it started
LOST = re.compile("gloo|nccl|connection|timed? ?out|peer", re.IGNORECASE)


class LostProcessError(RuntimeError):
    """Another process of the training ended or hangs."""


class GracefulStop(Callback):
    """SIGTERM or SIGINT to any process: all of them save at the end of the step, and leave with 143 or 130.

    A validation is broken off where the processes can agree on it, and is done anew after a resume; what is being saved
    is saved first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = self.agreed = 0  # number of the signal: of this process; of any
        self.asked_at = 0.0
        self.step = -1
        self.validating = False
        self.process = os.getpid()
        self.agreeing: Any = None  # group of processes that talk without the accelerator
        self.children: list[subprocess.Popen[bytes]] = []
        self.facts: dict[str, object] = {}
        """Thing -> what this process found; all must have found the same."""

    def note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a loader process ends with its training, not before it
        if self.asked == number == signal.SIGINT and time.monotonic() - self.asked_at > INSIST:
            raise SystemExit(128 + number)
        if not self.asked:
            self.asked, self.asked_at = number, time.monotonic()
        if self.validating and not self.agreeing:
            self.leave(self.asked)

    def leave(self, number: int) -> None:
        self.agreed, self.validating = number, False
        raise SystemExit(128 + number)

    def agree(self) -> int:
        """The signal that any process was sent, the same in all of them; 0 for none."""
        if self.agreeing:
            value = torch.tensor(self.asked)
            distributed.all_reduce(value, distributed.ReduceOp.MAX, self.agreeing)
            return int(value)
        return self.asked

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the processes compare their facts, before they exchange anything of a network or a checkpoint."""
        if trainer.world_size > 1:
            timeout = getattr(trainer.strategy, "_timeout", None)
            self.agreeing = distributed.new_group(backend="gloo", timeout=timeout)
            everywhere: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(everywhere, self.facts, self.agreeing)
            require_agreement(everywhere)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning has put handlers of its own in place, which talk to other processes at any moment. When training
        # ends it gives each signal its effect of before.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self.note)
        if trainer.received_sigterm:
            self.asked = signal.SIGTERM

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            return  # gradients that are still being added up belong to no checkpoint
        self.agreed = self.agree()
        every: Any = trainer.val_check_batch
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if self.agreed and batches % every:  # else on_validation_start is next
            self.leave(self.agreed)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validating = True
        if self.agreed:
            self.leave(self.agreed)

    def on_validation_batch_end(self, *_: Any) -> None:
        self.pause()

    def pause(self) -> None:
        """A moment of a validation at which all processes can leave it; called by all of them alike."""
        if self.agreeing and (number := self.agree()):
            self.leave(number)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validating = False  # the callback that saves comes after this one

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        started: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
        self.children += started
        started.clear()  # or Lightning would kill this process, before it can say why, when one of these fails
        if isinstance(exception, SystemExit) and self.agreed:
            validation: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            if trainer.validating:  # leave it as a validation whose first batch had begun: it is done anew
                validation.reset()
                validation.total.ready = validation.total.started = 1
            trainer.save_checkpoint(self.folder / LAST)
            if trainer.is_global_zero:
                name = signal.Signals(self.agreed).name
                print(f"\nstopped by {name} after step {trainer.global_step}; {kept(self.folder)}", flush=True)


@contextlib.contextmanager
def together(trainer: L.Trainer, stop: GracefulStop) -> Iterator[None]:
    """Around a training: no process of it outlives the others, and a lost one is named in one sentence."""
    done = threading.Event()
    if is_child():
        threading.Thread(target=follow, args=(os.getppid(), done, trainer.global_rank), daemon=True).start()
    try:
        yield
    except BaseException as error:
        end(stop.children)
        if is_child() and (isinstance(error, SystemExit) or getattr(error, "in_all_processes", False)):
            raise SystemExit(0) from None  # the first process tells
        if isinstance(error.__context__, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from None
        if trainer.world_size > 1 and isinstance(error, RuntimeError) and LOST.search(str(error)):
            raise LostProcessError(
                f"process {trainer.global_rank}: another process of this training ended or hangs "
                f"({first_line(error, 120)}); {kept(stop.folder)}"
            ) from error
        raise
    finally:
        done.set()


def follow(parent: int, done: threading.Event, rank: int) -> None:
    """End this process once the one that started it has ended."""
    while not done.wait(1.0):
        if os.getppid() != parent:
            print(f"process {rank}: ends, because the first process of this training has ended", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait a little for other processes of this training to end, then end them."""
    until = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
