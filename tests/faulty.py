"""A training in which something goes wrong at one step of one process, or of all.

Usage: python -m tests.faulty FAULT RANK STEP STAGE [arguments of scripts.train_stage_STAGE]; RANK is a number or all.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

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


def main() -> None:
    fault, rank, step, stage = sys.argv[1:5]
    usual = StepRoutine.on_train_batch_start

    def hook(self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        usual(self, trainer, module, batch, batch_idx)
        if trainer.global_step == int(step) - 1 and rank in ("all", str(trainer.global_rank)):
            print(f"FAULT {time.time()}", flush=True)
            if fault == "nan":
                batch["image"][0] = math.nan
            else:
                FAULTS[fault]()

    StepRoutine.on_train_batch_start = hook  # type: ignore[method-assign]  # that is the fault
    if stage == "1":
        from scripts.train_stage_1 import main as train
    else:
        from scripts.train_stage_2 import main as train
    train(sys.argv[5:])


if __name__ == "__main__":
    main()
