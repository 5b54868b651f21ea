"""Two processes of one training: a signal to one stops both in order, and a lost one ends the other with a sentence."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.faults]
TINY = [
    "animals-tiny", "--data.limit", "24", "--data.batch-size", "4", "--data.val-fraction", "0.001",
    "--data.image-size", "16", "--autoencoder.width", "8", "--autoencoder.multipliers", "1", "1", "2",
    "--train.accelerator", "cpu", "--train.precision", "fp32", "--train.channels-last", "off", "--train.max-steps", "8",
    "--train.val-every", "4", "--train.log-every", "1",
]  # fmt: skip
TWO = ["--train.devices", "2", "--train.strategy", "ddp"]


class Ended:
    """A training that has ended: its output, exit code, and seconds from the fault to its end."""

    def __init__(self, folder: Path, fault: str, rank: str, *extra: str, launcher: tuple[str, ...] = ("-m",)) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("MASK_")} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, "tests.faulty", fault, rank, "3", "1", *TINY, *extra]
        folder.mkdir(exist_ok=True)
        with open(folder / "said", "w") as said:  # no pipe, which an orphan would hold open
            process = subprocess.Popen(
                [*command, "--train.run-dir", str(folder / "run")], cwd=ROOT, env=env, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip
            try:
                self.code = process.wait(280)
                now = time.time()
                self.left_over = wait_for_group(process.pid)
            finally:
                if wait_for_group(process.pid, 0):
                    os.killpg(process.pid, signal.SIGKILL)
        self.said = (folder / "said").read_text()
        moments = re.findall(r"FAULT ([\d.]+)", self.said)  # behind a progress bar, on its line
        assert moments, self.said
        self.seconds = now - min(map(float, moments))


def wait_for_group(group: int, seconds: float = 5.0) -> bool:
    """Whether a process of the group is still there after so long."""
    until = time.monotonic() + seconds
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        if time.monotonic() > until:
            return True
        time.sleep(0.1)


def step_of(folder: Path) -> int:
    content: dict[str, Any] = torch.load(folder / "run" / "last.ckpt", weights_only=True)
    return int(content["global_step"])


@pytest.mark.parametrize("rank", ["0", "1", "all"])
@pytest.mark.parametrize("fault", ["term", "int"])
def test_a_signal_to_any_process_stops_all_after_the_step(fault: str, rank: str, tmp_path: Path) -> None:
    ended = Ended(tmp_path, fault, rank, *TWO)
    assert ended.code == {"term": 143, "int": 130}[fault], ended.said
    assert not ended.left_over
    assert ended.seconds < 10
    assert step_of(tmp_path) == 3
    assert "Traceback" not in ended.said


def test_torchrun_stops_in_order_too(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m")
    ended = Ended(tmp_path, "term", "1", *TWO, launcher=launcher)
    assert ended.code == 1
    assert not ended.left_over
    assert step_of(tmp_path) == 3


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("fault", ["kill", "raise"])
def test_a_lost_process_ends_the_other_with_a_sentence(fault: str, rank: str, tmp_path: Path) -> None:
    ended = Ended(tmp_path, fault, rank, *TWO)
    assert ended.code not in (0, 143), ended.said
    assert not ended.left_over
    assert ended.seconds < 15
    if fault == "raise":
        assert "something broke here" in ended.said
    else:
        assert "another process of this training ended" in ended.said or "the first process of this" in ended.said


def test_a_process_that_hangs_is_given_up_after_the_time_out(tmp_path: Path) -> None:
    ended = Ended(tmp_path, "hang", "1", *TWO, "--train.timeout", "60")  # which the start must fit in, too
    assert ended.code == 1, ended.said
    assert not ended.left_over
    assert ended.seconds < 60 + 15
    assert "another process of this training ended or hangs" in ended.said


def test_a_loss_of_one_process_that_is_no_number_stops_both(tmp_path: Path) -> None:
    ended = Ended(tmp_path, "nan", "1", *TWO)
    assert ended.code == 1, ended.said
    assert not ended.left_over
    assert "step 3" in ended.said
    assert "process 1: loss nan (of its parts: reconstruction nan" in ended.said
    assert ended.said.count("training stops at step") == 1
    assert "Traceback" not in ended.said


@pytest.mark.parametrize("devices", [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_after_the_masks_seen(devices: tuple[int, int], tmp_path: Path) -> None:
    first, second = (["--train.devices", str(n)] for n in devices)
    ended = Ended(tmp_path, "term", "0", *first)
    assert ended.code == 143, ended.said
    env = {k: v for k, v in os.environ.items() if not k.startswith("MASK_")}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.train_stage_1", *TINY, *second, "--train.run-dir", str(tmp_path / "run"),
         "--train.resume", "auto"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"not bit by bit: processes {devices[0]} -> {devices[1]}" in done.stdout
    assert step_of(tmp_path) == 8
