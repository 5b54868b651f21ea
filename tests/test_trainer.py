"""Whole trainings as a user starts them: run folders, refusals, exact resume, and two processes on this machine."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from models.checkpoint import read_checkpoint
from scripts import train_stage_1, train_stage_2

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

COMMON = [
    "animals-tiny", "--data.limit", "24", "--data.batch-size", "8", "--data.val-fraction", "0.005",
    "--train.accelerator", "cpu", "--train.precision", "fp32", "--train.channels-last", "off",
    "--train.val-every", "2", "--train.log-every", "1", "--optim.warmup-steps", "0", "--optim.final-lr", "1.0",
]  # fmt: skip
PATIENCE = 600  # seconds: a minute and a half on two quiet cores, several times that on busy ones
STAGE_1 = [*COMMON, "--autoencoder.width", "8", "--autoencoder.multipliers", "1", "1", "2"]
STAGE_2 = [*COMMON, "--backbone.width", "32", "--backbone.blocks", "1", "--text.width", "16",
           "--sampler.begin", "0"]  # fmt: skip


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """Run a module of the project; its output is kept for the assertion's message."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MASK_")}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=clean | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def words(stage: int, folder: Path, *extra: str) -> list[str]:
    base = STAGE_1 if stage == 1 else STAGE_2
    return [*base, "--train.run-dir", str(folder), "--train.runs", str(folder.parent), *extra]


def train(stage: int, folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    return run([f"scripts.train_stage_{stage}", *words(stage, folder, *extra)])


def train_here(stage: int, folder: Path, *extra: str) -> None:
    """In this process, which has imported all that it takes, and without looking at masks."""
    main = train_stage_1.main if stage == 1 else train_stage_2.main
    main(words(stage, folder, "--train.previews", "False", "--train.quality", "0", *extra))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "stage1"
    done = train(1, folder, "--train.max-steps", "4")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def stage_2(stage_1: Path) -> Path:
    folder = stage_1.parent / "stage2"
    done = train(2, folder, "--autoencoder", str(stage_1 / "last.ckpt"), "--train.max-steps", "4")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_folder_holds_checkpoints_config_and_logs(stage_1: Path, stage_2: Path) -> None:
    for folder, kind in ((stage_1, "autoencoder"), (stage_2, "diffusion")):
        assert {"last.ckpt", "best.ckpt", "config.json", "run.json"} <= {p.name for p in folder.iterdir()}
        assert list(folder.glob("tensorboard/events*"))
        run_json = json.loads((folder / "run.json").read_text())
        assert (run_json["kind"], run_json["status"]) == (kind, "complete")
        header = (folder / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
        expected = {"val/iou", "val/dice", "val/posterior_std"} if kind == "autoencoder" else {
            "train/flow", "train/consistency", "val/loss", "train/grad_norm", "train/masks_per_second",
        }  # fmt: skip
        assert expected <= set(header)
        assert any(name.startswith("lr-") for name in header)


def test_pictures_at_1_4_and_32_steps_reach_tensorboard(stage_1: Path, stage_2: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = set()
    for folder in (stage_1, stage_2):
        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        tags |= set(events.Tags()["images"])
    assert tags == {"reconstructions", "samples/1_steps", "samples/4_steps", "samples/32_steps"}


def test_each_stage_ends_with_a_report_that_holds_its_pictures(stage_1: Path, stage_2: Path) -> None:
    for folder, pictures in ((stage_1, 1 + 2), (stage_2, 3 + 3 * 2)):  # the newest, and after each of two validations
        text = (folder / "report.html").read_text()
        assert text.count("data:image/png;base64,") == pictures
        assert "complete after 4 of 4 steps" in text
        assert f"bash scripts/train_stage_{1 if folder == stage_1 else 2}.sh animals-tiny" in text


@pytest.mark.slow(longest=True)
@pytest.mark.parametrize("stage", [1, 2])
def test_resuming_ends_with_the_same_weights(
    stage: int, stage_1: Path, stage_2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the middle of an epoch (2 of 3 batches), resumed, and compared bit by bit, averages included.

    Stage 2 goes on in another process; test_faults_golden.py does so with stage 1.
    """
    extra = ["--autoencoder", str(stage_1 / "last.ckpt")] if stage == 2 else []
    train_here(stage, tmp_path / "r", "--train.max-steps", "2", *extra)
    capsys.readouterr()
    further = ["--train.max-steps", "4", "--train.resume", "auto", *extra]
    if stage == 1:
        train_here(stage, tmp_path / "r", *further)
        said = capsys.readouterr().out
    else:
        done = train(stage, tmp_path / "r", *further)
        assert done.returncode == 0, done.stderr
        said = done.stdout
    assert "resuming from" in said
    whole, resumed = weights((stage_1 if stage == 1 else stage_2) / "last.ckpt"), weights(tmp_path / "r" / "last.ckpt")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


Refusal = Callable[..., str]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """(stage, folder, further arguments) -> the sentence that refuses a training; in this process, which has torch."""

    def sentence(stage: int, folder: Path, *extra: str) -> str:
        main, base = (train_stage_1.main, STAGE_1) if stage == 1 else (train_stage_2.main, STAGE_2)
        with pytest.raises(SystemExit) as ended:
            main([*base, "--train.run-dir", str(folder), *extra])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return sentence


def test_stage_2_refuses_what_is_no_finished_stage_1(stage_1: Path, tmp_path: Path, refusal: Refusal) -> None:
    missing = refusal(2, tmp_path / "a", "--train.runs", str(tmp_path))
    assert "no complete stage-1 training" in missing
    assert "bash scripts/train_stage_1.sh" in missing
    mistyped = refusal(2, tmp_path / "b", "--autoencoder", "animal")
    assert "name icons, icons256, animals, geometry or a last.ckpt of yours" in mistyped
    assert "bash scripts/train_stage_1.sh" in mistyped
    earlier = refusal(2, tmp_path / "c", "--autoencoder", str(stage_1 / "best.ckpt"))
    assert f"name the last one of its training: {stage_1 / 'last.ckpt'}" in earlier
    (tmp_path / "stopped").mkdir()
    shutil.copy(stage_1 / "best.ckpt", tmp_path / "stopped" / "last.ckpt")
    unfinished = refusal(2, tmp_path / "c", "--autoencoder", str(tmp_path / "stopped" / "last.ckpt"))
    assert "not finished" in unfinished
    assert "bash scripts/train_stage_1.sh" in unfinished
    other = refusal(2, tmp_path / "d", "--autoencoder", str(stage_1 / "last.ckpt"), "--data.image-size", "64")
    assert "32-pixel" in other
    assert not list(tmp_path.glob("[a-d]/last.ckpt"))


def test_a_teacher_of_decay_1_stays_the_model_of_init(stage_2: Path, tmp_path: Path) -> None:
    init, run_dir = stage_2 / "last.ckpt", tmp_path / "refined"
    refine = ["--init", str(init), "--sampler.jumps-from", "0", "--sampler.jump-nodes", "2", "--ema.teacher-decay", "1"]
    before = weights(init)
    for further in (["--train.max-steps", "2"], ["--train.max-steps", "3", "--train.resume", "auto"]):
        train_here(2, run_dir, *refine, *further)
        after = weights(run_dir / "last.ckpt")
        own = [name.removeprefix("average.") for name in before if name.startswith("average.")]
        assert all(torch.equal(after[f"teacher.{name}"], before[f"average.{name}"]) for name in own)
        assert any(not torch.equal(after[f"average.{name}"], before[f"average.{name}"]) for name in own)


def test_a_second_training_in_the_same_folder_is_refused(stage_1: Path, refusal: Refusal) -> None:
    before = (stage_1 / "last.ckpt").stat().st_mtime_ns
    assert "already holds a training" in refusal(1, stage_1, "--train.max-steps", "4")
    assert (stage_1 / "last.ckpt").stat().st_mtime_ns == before


@pytest.mark.slow(longest=True)
@pytest.mark.timeout(PATIENCE + 30)
def test_two_machines_under_torchrun_share_one_folder_and_judge_together(stage_1: Path, tmp_path: Path) -> None:
    """Two launchers that know of each other by address and port only, a process each, on this machine."""
    folder = tmp_path / "runs"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [
        "--", "scripts.train_stage_2", *STAGE_2, "--train.run-dir", str(folder), "--autoencoder",
        str(stage_1 / "last.ckpt"), "--train.previews", "False", "--train.quality", "8", "--train.runs", str(tmp_path),
        "--train.strategy", "fsdp", "--train.checkpoint-parts", "True", "--train.max-steps", "2",
    ]  # fmt: skip
    with ThreadPoolExecutor(2) as machines:
        meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port, "-m"]
        started = [
            machines.submit(run, ["torch.distributed.run", "--node-rank", str(node), *meeting, *words])
            for node in range(2)
        ]
        for done in started:
            assert done.result().returncode == 0, done.result().stderr
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "latents"}
    judged = next(csv.DictReader((folder / "csv" / "metrics.csv").open()), {})
    numbers = ("frechet_1", "frechet_32", "accuracy_4", "memorised", "judging_share")
    assert {f"val/{name}" for name in numbers} <= set(judged)
    assert all((folder / name).is_symlink() for name in ("best.ckpt", "last.ckpt"))
    best, last = (read_checkpoint(folder / name, "diffusion", "") for name in ("best.ckpt", "last.ckpt"))
    assert any(state.get("monitor") == "val/frechet_1" for state in best["callbacks"].values())
    assert last["state_dict"].keys() > {"net.conv_out.weight", "average.conv_out.weight"}
