"""Two processes of one training: a signal to one stops both in order, and a lost one ends the other with a sentence."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_faults_resume import same_training

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1200)]
LONGEST = 600.0  # seconds of one training, on a machine that others use too
SMALL = [
    "animals-tiny", "--data.limit", "24", "--data.batch-size", "4", "--data.val-fraction", "0.001",
    "--data.image-size", "16", "--train.accelerator", "cpu", "--train.precision", "fp32",
    "--train.channels-last", "off", "--train.max-steps", "8", "--train.val-every", "4", "--train.log-every", "1",
]  # fmt: skip
TINY = [*SMALL, "--autoencoder.width", "8", "--autoencoder.multipliers", "1", "1", "2"]
STAGES = {
    1: TINY,
    2: [*SMALL, "--backbone.width", "32", "--backbone.blocks", "1", "--text.width", "16", "--sampler.begin", "0",
        "--train.quality", "8"],
}  # fmt: skip
TWO = ["--train.devices", "2", "--train.strategy", "ddp"]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MASK_")}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def train(stage: int, folder: Path, *extra: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A training without faults of its own; its output goes where no process that it leaves could hold a pipe open."""
    where = ["--train.run-dir", str(folder), "--train.runs", str(folder.parent)]
    command = [sys.executable, "-m", f"scripts.train_stage_{stage}", *STAGES[stage], *where]
    said = folder.with_suffix(".said")
    with open(said, "w") as file:
        done = subprocess.run(
            [*command, *extra], cwd=ROOT, env=environment(**more), stdout=file, stderr=file, timeout=LONGEST,
            check=False,
        )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, said.read_text())


def slow() -> float:
    """By how much this machine is slower than one that has nothing else to do."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Ended:
    """A training that has ended: its output, exit code, and seconds of a quiet machine from the fault to its end."""

    def __init__(
        self, folder: Path, fault: str, rank: str, *extra: str, launcher: tuple[str, ...] = ("-m",), step: str = "3",
        stage: int = 1,
    ) -> None:
        env = environment()
        command = [sys.executable, *launcher, "tests.faulty", fault, rank, step, str(stage), *STAGES[stage], *extra]
        folder.mkdir(exist_ok=True)
        with open(folder / "said", "w") as said:  # no pipe, which an orphan would hold open
            process = subprocess.Popen(
                [*command, "--train.run-dir", str(folder / "run"), "--train.runs", str(folder)], cwd=ROOT, env=env,
                stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
            try:
                self.code = process.wait(LONGEST)
                now = time.time()
                self.left_over = wait_for_group(process.pid, 5 * slow())
            finally:
                if wait_for_group(process.pid, 0):
                    os.killpg(process.pid, signal.SIGKILL)
        self.said = (folder / "said").read_text()
        moments = re.findall(r"FAULT ([\d.]+)", self.said)  # behind a progress bar, on its line
        assert moments, self.said
        self.seconds = (now - min(map(float, moments))) / slow()


def wait_for_group(group: int, seconds: float) -> bool:
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
    patience = 60 * slow()  # which the start must fit in, too
    ended = Ended(tmp_path, "hang", "1", *TWO, "--train.timeout", str(patience))
    assert ended.code == 1, ended.said
    assert not ended.left_over
    assert ended.seconds < patience + 15
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
    done = train(1, tmp_path / "run", *second, "--train.resume", "auto")
    assert done.returncode == 0, done.stdout
    assert f"not bit by bit: processes {devices[0]} -> {devices[1]}" in done.stdout
    assert step_of(tmp_path) == 8


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("stage1") / "run"
    done = train(1, run)
    assert done.returncode == 0, done.stdout
    return str(run / "last.ckpt")


@pytest.fixture(scope="module")
def judged(stage_1: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken stage 2 of two processes."""
    run = tmp_path_factory.mktemp("stage2") / "run"
    done = train(2, run, "--autoencoder", stage_1, *TWO)
    assert done.returncode == 0, done.stdout
    return run


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_signal_while_two_processes_judge_samples_is_heeded_before_the_next_batch(
    rank: str, stage_1: str, judged: Path, tmp_path: Path
) -> None:
    """The validation is broken off in both, and done anew after the resume."""
    extra = ("--autoencoder", stage_1, *TWO)
    ended = Ended(tmp_path, "term", rank, *extra, step="judging", stage=2)
    assert ended.code == 143, ended.said
    assert not ended.left_over
    assert ended.seconds < 10
    assert ended.said.count("DREW 1\n") == 2
    assert "DREW 4" not in ended.said
    assert step_of(tmp_path) == 4
    assert not (tmp_path / "run" / "best.ckpt").exists()
    done = train(2, tmp_path / "run", *extra, "--train.resume", "auto")
    assert done.returncode == 0, done.stdout
    for name in ("last.ckpt", "best.ckpt"):
        same_training(judged / name, tmp_path / "run" / name)


def test_a_signal_while_a_classifier_is_trained_is_heeded_before_it_is_done(stage_1: str, tmp_path: Path) -> None:
    ended = Ended(tmp_path, "term", "0", "--autoencoder", stage_1, *TWO, step="classifier", stage=2)
    assert ended.code == 143, ended.said
    assert not ended.left_over
    assert ended.seconds < 10
    assert ended.said.count("LEARNED\n") == 100  # of 120
    assert step_of(tmp_path) == 4
    assert not (tmp_path / "run" / "classifier.pt").exists()


def test_a_taken_port_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = train(1, tmp_path / "run", *TWO, MASTER_PORT=port)
    assert done.returncode == 2, done.stdout
    (said,) = (line for line in done.stdout.splitlines() if line.startswith("train_stage_1:"))
    assert f"MASTER_PORT is '{port}'" in said
    assert "unset it" in said
    assert not (tmp_path / "run").exists()
