"""The golden test: trainings killed at random moments and resumed, again and again, end as if nothing had happened."""

import csv
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_faults_resume import content, same_training

pytestmark = pytest.mark.slow
COMMON = [
    "animals-tiny", "--data.limit", "12", "--data.batch-size", "4", "--data.val-fraction", "0.001",
    "--data.image-size", "16", "--train.accelerator", "cpu", "--train.precision", "fp32",
    "--train.channels-last", "off", "--train.val-every", "2", "--train.log-every", "1", "--train.previews", "False",
    "--train.quality", "0", "--train.resume", "auto",
]  # fmt: skip
STAGES = {
    1: ["--autoencoder.width", "8", "--autoencoder.multipliers", "1", "1", "2"],
    2: ["--backbone.width", "32", "--backbone.blocks", "1", "--text.width", "16", "--sampler.begin", "0"],
}
MOMENTS = ("step", "saving", "validation", "any")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, count: int) -> None:
    """Let this process be killed at the ``count``-th such moment; "any" is ``count`` tenths of a second after start."""
    from autoencoder import AutoencoderModule
    from diffusion import DiffusionModule
    from models import saving
    from models.steps import StepRoutine

    left = count

    def reached() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def before(owner: Any, name: str) -> None:
        usual = getattr(owner, name)

        def hook(*args: Any, **kwargs: Any) -> Any:
            if reached():
                die()
            return usual(*args, **kwargs)

        setattr(owner, name, hook)

    if moment == "step":
        before(StepRoutine, "on_before_optimizer_step")
    elif moment == "validation":
        before(AutoencoderModule, "validation_step")
        before(DiffusionModule, "validation_step")
    elif moment == "saving":
        usual = saving.write_whole

        def half(path: Path, write: Any) -> None:
            def cut(file: Any) -> None:
                write(file)
                if reached():
                    file.truncate(file.tell() // 2)
                    die()

            usual(path, cut)

        saving.write_whole = half  # type: ignore[assignment]
    else:
        usual_start = StepRoutine.on_train_start

        def timed(self: Any, *args: Any) -> None:
            usual_start(self, *args)
            threading.Thread(target=lambda: (time.sleep(count / 10), die()), daemon=True).start()

        StepRoutine.on_train_start = timed  # type: ignore[method-assign]


def training(stage: int, argv: list[str], moment: str, count: int) -> None:
    os.environ.pop("MASK_RUN_DIR", None)
    torch.set_num_threads(1)
    if moment:
        arm(moment, count)
    if stage == 1:
        from scripts.train_stage_1 import main
    else:
        from scripts.train_stage_2 import main
    main(argv)


def run(stage: int, argv: list[str], moment: str = "", count: int = 0) -> int:
    """The exit code of a training in a process of its own; it is forked from one that has imported everything."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["trainer", "scripts.train_stage_1", "scripts.train_stage_2"])
    process = server.Process(target=training, args=(stage, argv, moment, count))
    process.start()
    process.join(600)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("a training hangs")
    return process.exitcode


def whole(folder: Path) -> None:
    """Every file can be read, and none is left half written (but for one that the next start sweeps)."""
    for path in folder.glob("*.ckpt"):
        content(path)
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    assert len(list(folder.glob(".*.part"))) <= 1


def losses(folder: Path) -> dict[int, set[str]]:
    """Step -> every loss logged for it, in any part of the training."""
    found: dict[int, set[str]] = {}
    for path in folder.glob("csv*/metrics.csv"):
        for row in csv.DictReader(path.open()):
            if row.get("loss"):
                found.setdefault(int(row["step"]), set()).add(row["loss"])
    return found


def torture(stage: int, folder: Path, kills: int, seed: int, *extra: str) -> int:
    """Train unbroken, and killed up to ``kills`` times; both must be the same. Returns how often it was killed."""
    base = [*COMMON, *STAGES[stage], *extra]
    calm, broken = folder / f"calm{stage}", folder / f"broken{stage}"
    assert run(stage, [*base, "--train.run-dir", str(calm)]) == 0
    draw, done = random.Random(seed), 0
    argv = [*base, "--train.run-dir", str(broken)]
    for number in range(kills):
        moment = MOMENTS[number % len(MOMENTS)]
        if run(stage, argv, moment, draw.randint(1, 8 if moment == "any" else 3)) == 0:
            break
        done += 1
        whole(broken)
    assert run(stage, argv) == 0
    assert not list(broken.glob(".*.part"))
    assert content(broken / "last.ckpt")["mask_model"]["complete"]
    for name in ("last.ckpt", "best.ckpt"):
        same_training(calm / name, broken / name)
    expected = losses(calm)
    assert expected
    for step, values in losses(broken).items():
        assert values == expected[step]  # also a step that was done more than once
    print(f"stage {stage}: killed {done} times, lost 0")
    return done


def test_a_stage_1_killed_while_saving_and_validating_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    assert torture(1, tmp_path, 3, 1, "--train.max-steps", "12") == 3


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0])
def test_both_stages_killed_at_ten_random_moments_end_as_unbroken_ones(seed: int, tmp_path: Path) -> None:
    steps = ["--train.max-steps", "24"]
    killed = torture(1, tmp_path, 5, seed, *steps)
    killed += torture(2, tmp_path, 5, seed + 1, *steps, "--autoencoder", str(tmp_path / "calm1" / "last.ckpt"))
    assert killed == 10
