"""A training in which something goes wrong at one step of one process, or of all.

Usage: python -m tests.faulty FAULT RANK STEP STAGE [arguments of scripts.train_stage_STAGE]; RANK is a number or all.
STEP is a number, or "judging": in the middle of the first judging of samples, or "classifier": while what judges them
is trained.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from metrics import classifier
from metrics.quality import QualityMonitor
from models.steps import StepRoutine


def give_up() -> None:
    raise ValueError("something broke here")


FAULTS: dict[str, Callable[[], None]] = {
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "int": lambda: os.kill(os.getpid(), signal.SIGINT),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raise": give_up,
    "hang": lambda: time.sleep(1000),
}


def at_step(step: int, happen: Callable[[Any, Any], None]) -> None:
    usual = StepRoutine.on_train_batch_start

    def hook(self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        usual(self, trainer, module, batch, batch_idx)
        if trainer.global_step == step - 1:
            happen(trainer, batch)

    StepRoutine.on_train_batch_start = hook  # type: ignore[method-assign]  # that is the fault


def at_judging(happen: Callable[[Any, Any], None]) -> None:
    usual = QualityMonitor.draw
    drawn: list[int] = []

    def hook(self: Any, trainer: Any, module: Any, prompts: Any, noise: Any, steps: int) -> Any:
        drawn.append(steps)
        if len(drawn) == 2:
            happen(trainer, None)
        masks = usual(self, trainer, module, prompts, noise, steps)
        os.write(1, f"DREW {steps}\n".encode())  # in one piece, which two processes cannot mix
        return masks

    QualityMonitor.draw = hook  # type: ignore[method-assign]  # that is the fault


def at_classifier(happen: Callable[[Any, Any], None]) -> None:
    usual = classifier.jitter
    done: list[int] = []

    def hook(masks: Any, generator: Any) -> Any:
        done.append(1)
        if len(done) == 60:
            happen(None, None)
        os.write(1, b"LEARNED\n")
        return usual(masks, generator)

    classifier.jitter = hook  # that is the fault


def main() -> None:
    fault, rank, step, stage = sys.argv[1:5]

    def happen(trainer: Any, batch: Any) -> None:
        if trainer and rank not in ("all", str(trainer.global_rank)):  # only the first process trains a classifier
            return
        print(f"FAULT {time.time()}", flush=True)
        if fault == "nan":
            batch["image"][0] = math.nan
        else:
            FAULTS[fault]()

    if step == "judging":
        at_judging(happen)
    elif step == "classifier":
        at_classifier(happen)
    else:
        at_step(int(step), happen)
    if stage == "1":
        from scripts.train_stage_1 import main as train
    else:
        from scripts.train_stage_2 import main as train
    train(sys.argv[5:])


if __name__ == "__main__":
    main()
