"""Signals are noted, and have their effect at a moment that harms nothing."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.stopping import GracefulStop


@pytest.fixture
def stop(tmp_path: Path) -> GracefulStop:
    return GracefulStop(tmp_path)


def test_while_saving_or_training_a_signal_waits_for_the_end_of_the_step(stop: GracefulStop) -> None:
    stop.note(signal.SIGTERM, None)
    stop.note(signal.SIGINT, None)  # such as torchrun's, after that of the terminal
    assert stop.asked == signal.SIGTERM
    trainer: Any = SimpleNamespace(
        global_step=4, val_check_batch=10,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace()))),
    )  # fmt: skip
    module: Any = None
    total = trainer.fit_loop.epoch_loop.batch_progress.total
    total.ready = 7
    stop.on_train_batch_start(trainer)
    stop.on_train_batch_end(trainer, module)  # gradients are still being added up
    trainer.global_step, total.ready = 5, 8
    with pytest.raises(SystemExit) as end:
        stop.on_train_batch_end(trainer, module)
    assert end.value.code == 143
    trainer.global_step, total.ready = 6, 10
    stop.on_train_batch_end(trainer, module)  # a validation is due: it is to be done after a resume
    with pytest.raises(SystemExit):
        stop.on_validation_start(trainer, module)


def test_ctrl_c_twice_in_a_row_is_once_but_later_it_ends_at_once(
    stop: GracefulStop, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop.note(signal.SIGINT, None)
    stop.note(signal.SIGINT, None)
    later = time.monotonic() + 2
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(SystemExit) as end:
        stop.note(signal.SIGINT, None)
    assert end.value.code == 130
    assert not stop.agreed  # nothing is saved in the middle of a step


def test_a_validation_is_broken_off_at_once(stop: GracefulStop) -> None:
    trainer: Any = None
    stop.on_validation_start(trainer, trainer)
    with pytest.raises(SystemExit) as end:
        stop.note(signal.SIGTERM, None)
    assert end.value.code == 143
    stop.note(signal.SIGTERM, None)  # while it is being saved
    assert stop.agreed == signal.SIGTERM


def test_loader_processes_leave_signals_to_their_training(stop: GracefulStop) -> None:
    stop.process = os.getpid() + 1
    stop.note(signal.SIGTERM, None)
    assert not stop.asked
