"""The golden test: trainings killed at random moments and resumed, again and again, end as if nothing had happened."""

import csv
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
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
    "--train.resume", "auto",
]  # fmt: skip
STAGES = {
    1: ["--autoencoder.width", "8", "--autoencoder.multipliers", "1", "1", "2"],
    2: ["--backbone.width", "32", "--backbone.blocks", "1", "--text.width", "16", "--sampler.begin", "0",
        "--train.quality", "8"],
}  # fmt: skip
PLACES = {  # what is being done when the process is killed -> where exactly
    "step": ("before the forward pass", "before the backward pass", "before the update", "after the update"),
    "validation": ("at a batch", "after the batches"),
    "saving": ("half written", "before it has its name", "when it has its name"),
    "time": ("whatever is being done",),
    "end": ("before the last checkpoint", "when it is there"),
}


@dataclass(frozen=True)
class Moment:
    """When to kill a training: at the ``count``-th time that it comes to ``place``."""

    kind: str
    place: str
    count: int
    delay: float
    """Seconds after the ``count``-th step has begun, for the kind "time"; two steps later it waits for its end."""


def moments(kinds: list[str], draw: random.Random) -> list[Moment]:
    """One of each of ``kinds`` in random order, and then one at the end."""
    return [
        Moment(kind, draw.choice(PLACES[kind]), draw.randint(1, 3), draw.uniform(0, 0.3))
        for kind in (*draw.sample(kinds, len(kinds)), "end")
    ]


class Killer:
    """Watches what this process does, and kills it at one moment; ``note`` then tells what it did."""

    def __init__(self, moment: Moment, note: Path) -> None:
        self.left, self.note, self.doing, self.step = moment.count, note, "starting", 0
        self.moment = moment
        self.arm()
        self.watch()  # asked first

    def die(self) -> None:
        self.note.write_text(f"{self.moment.kind}: {self.doing}, step {self.step}")
        os.kill(os.getpid(), signal.SIGKILL)

    def reached(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.die()

    def before(self, owner: Any, name: str, do: Callable[..., object]) -> None:
        """Let ``do`` have the arguments of ``owner.name`` before it is called."""
        usual = getattr(owner, name)

        def hook(*args: Any, **kwargs: Any) -> Any:
            do(*args)
            return usual(*args, **kwargs)

        setattr(owner, name, hook)

    def watch(self) -> None:
        from autoencoder import AutoencoderModule
        from diffusion import DiffusionModule
        from models import saving
        from models.steps import StepRoutine

        def begin(routine: Any, trainer: Any, *_: Any) -> None:
            self.step, self.doing = trainer.global_step + 1, "in a step"

        self.before(StepRoutine, "on_train_batch_start", begin)
        for module in (AutoencoderModule, DiffusionModule):
            self.before(module, "validation_step", lambda *_: setattr(self, "doing", "validating"))
        for name in ("write_whole", "same_file"):
            self.before(saving, name, lambda *_: setattr(self, "doing", "saving"))

    def arm(self) -> None:
        import trainer
        from autoencoder import AutoencoderModule
        from diffusion import DiffusionModule
        from metrics.quality import QualityMonitor
        from models import saving
        from models.steps import StepRoutine

        kind, place = self.moment.kind, self.moment.place
        if kind == "step":
            hooks = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")
            self.before(StepRoutine, hooks[PLACES["step"].index(place)], lambda *_: self.reached())
        elif kind == "validation":
            at_a_batch = ((AutoencoderModule, "validation_step"), (DiffusionModule, "validation_step"))
            after = ((saving.Checkpoints, "on_validation_end"), (QualityMonitor, "judge"))
            for owner, name in at_a_batch if place == "at a batch" else after:
                self.before(owner, name, lambda *_: self.reached())
        elif kind == "saving" and place == "half written":
            write_whole = saving.write_whole

            def half(path: Path, write: Callable[[Any], object]) -> None:
                def cut(file: Any) -> None:
                    write(file)
                    file.truncate(file.tell() // 2)
                    self.reached()
                    file.seek(0)
                    file.truncate()
                    write(file)

                write_whole(path, cut)

            saving.write_whole = half  # type: ignore[assignment]  # that is the fault
        elif kind == "saving":
            usual = os.replace

            def replace(source: Any, target: Any) -> None:
                checkpoint = str(target).endswith(".ckpt")
                if checkpoint and place == "before it has its name":
                    self.reached()
                usual(source, target)
                if checkpoint and place == "when it has its name":
                    self.reached()

            os.replace = replace  # type: ignore[assignment]  # that is the fault
        elif kind == "end":
            self.left = 1
            if place == "before the last checkpoint":
                self.before(trainer, "finish", lambda *_: self.reached())
            else:
                self.before(trainer, "describe_run", lambda *about: self.reached() if "complete" in about else None)
        else:

            def later() -> None:
                time.sleep(self.moment.delay)
                self.die()

            end = threading.Thread(target=later, daemon=True)

            def count(*_: Any) -> None:
                self.left -= 1
                if self.left == 0:
                    end.start()
                elif self.left == -2:  # on a fast machine the training could be over before: later moments need steps
                    end.join()

            self.before(StepRoutine, "on_train_batch_start", count)


def training(stage: int, argv: list[str], moment: Moment | None, note: Path) -> None:
    os.environ.pop("MASK_RUN_DIR", None)
    torch.set_num_threads(1)
    if moment:
        Killer(moment, note)
    if stage == 1:
        from scripts.train_stage_1 import main
    else:
        from scripts.train_stage_2 import main
    main(argv)


def run(stage: int, argv: list[str], moment: Moment | None = None, note: Path = Path()) -> int:
    """The exit code of a training in a process of its own; it is forked from one that has imported everything."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["trainer", "scripts.train_stage_1", "scripts.train_stage_2"])
    process = server.Process(target=training, args=(stage, argv, moment, note))
    process.start()
    process.join(600)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("a training hangs")
    return process.exitcode


def whole(folder: Path) -> None:
    """Every file can be read, and none is left half written (but for one that the next start sweeps)."""
    for path in (*folder.glob("*.ckpt"), *folder.glob("*.pt")):
        content(path)
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    for path in folder.glob("csv*/metrics.csv"):
        for row in csv.DictReader(path.open()):
            assert None not in (*row.keys(), *row.values()), path
    assert len(list(folder.glob(".*.part"))) <= 1


def losses(folder: Path) -> dict[int, set[str]]:
    """Step -> every loss logged for it, in any part of the training."""
    found: dict[int, set[str]] = {}
    for path in folder.glob("csv*/metrics.csv"):
        for row in csv.DictReader(path.open()):
            if row.get("loss"):
                found.setdefault(int(row["step"]), set()).add(row["loss"])
    return found


def where(folder: Path) -> list[str]:
    return ["--train.run-dir", str(folder), "--train.runs", str(folder.parent)]


def tortured(stage: int, folder: Path, kills: list[Moment], *argv: str) -> int:
    """Train in ``folder`` with a kill at each of the moments, going on after each; how many lost a checkpoint."""
    base, note = [*COMMON, *STAGES[stage], *argv, *where(folder)], folder.parent / "note"
    before = lost = 0
    for moment in kills:
        assert run(stage, base, moment, note) == -signal.SIGKILL, moment
        whole(folder)
        last = folder / "last.ckpt"
        kept = content(last)["global_step"] if last.exists() else 0
        print(f"stage {stage}, {note.read_text()} ({moment.place}); last.ckpt: {before} -> {kept}", flush=True)
        lost, before = lost + (kept < before), kept
    assert run(stage, base) == 0
    assert not list(folder.glob(".*.part"))
    whole(folder)
    return lost


def calm(stage: int, folder: Path, *argv: str) -> None:
    assert run(stage, [*COMMON, *STAGES[stage], *argv, *where(folder)]) == 0


def same_run(one: Path, other: Path) -> None:
    """Weights, optimiser and every logged loss of the trainings in two folders are equal, bit by bit."""
    assert content(other / "last.ckpt")["mask_model"]["complete"]
    assert json.loads((other / "run.json").read_text())["status"] == "complete"
    for name in ("last.ckpt", "best.ckpt"):
        same_training(one / name, other / name)
    expected, found = losses(one), losses(other)
    assert max(found, default=-1) == max(expected)
    for step, values in found.items():
        assert values == expected[step]  # also a step that was done more than once


def test_a_stage_1_killed_while_saving_validating_and_ending_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    steps = ("--train.max-steps", "12")
    calm(1, tmp_path / "calm", *steps)
    kills = moments(["saving", "validation"], random.Random(1))
    assert tortured(1, tmp_path / "broken", kills, *steps) == 0
    same_run(tmp_path / "calm", tmp_path / "broken")


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0])
def test_both_stages_killed_at_twelve_random_moments_end_as_unbroken_ones(seed: int, tmp_path: Path) -> None:
    """A training of stage 1, then one of stage 2 on it; six kills in each, two at any time and one at the end."""
    # The moments take at most 3 + 6 + 6 + 5 + 5 steps (a validation and a saving come every second one): all fit.
    draw, steps = random.Random(seed), ("--train.max-steps", "32")
    tried = lost = 0
    kinds = ["step", "saving", "validation", "time", "time"]
    for stage in (1, 2):
        on = {run: () if stage == 1 else ("--autoencoder", str(tmp_path / run / "1" / "last.ckpt"))
              for run in ("calm", "broken")}  # fmt: skip
        calm(stage, tmp_path / "calm" / str(stage), *steps, *on["calm"])
        kills = moments(kinds, draw)
        lost += tortured(stage, tmp_path / "broken" / str(stage), kills, *steps, *on["broken"])
        tried += len(kills)
        same_run(tmp_path / "calm" / str(stage), tmp_path / "broken" / str(stage))
    print(f"seed {seed}: {tried} moments tried, {lost} lost")
    assert (tried, lost) == (12, 0)
