"""How long a command takes before something happens."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.benchmarks.report import Report
from scripts.benchmarks.training import Setting

LIMIT = 300.0


def start(setting: Setting, report: Report) -> None:
    """Seconds from launch to the help, the first training step and the first file."""
    report.title("Start-up / its limit: --help 1 s, first training step 15 s, first mask 8 s")
    repeats = 1 if setting.cfg.quick else 3
    accelerator = setting.cfg.accelerator
    # Few steps, so that a training whose benchmark was killed ends soon.
    training = ["train_stage_2", "animals-tiny", "--init", "animals", "--train.max-steps", "50", "--train.previews",
                "False", "--train.accelerator", accelerator, "--train.log-every", "1"]  # fmt: skip
    drawing = ["generate_masks", "--checkpoint", "animals", "--prompt", "a cat", "--num", "1",
               "--accelerator", accelerator]  # fmt: skip
    found: dict[str, list[float]] = {"help": [], "first_training_step": [], "first_mask": []}
    for _ in range(repeats):
        for command in ("train_stage_2", "generate_masks"):
            found["help"].append(until(None, [command, "--help"]))
        run, masks = setting.folder(), setting.folder()
        training_step = until(run / "csv" / "metrics.csv", [*training, "--train.run-dir", str(run)])
        found["first_training_step"].append(training_step)
        found["first_mask"].append(until(masks / "a-cat-0000.png", [*drawing, "--out", str(masks)]))
    for (name, seconds), limit in zip(found.items(), (1.0, 15.0, 8.0), strict=True):
        report.number(f"{name}_seconds", min(seconds), "s, the shortest")
        report.ratio(f"{name}_to_limit", seconds, [limit] * len(seconds), "<= 1")


def until(marker: Path | None, words: list[str]) -> float:
    """Seconds until a command has written the file ``marker``, when it is stopped; without one, until it ends."""
    began = time.perf_counter()
    command = [sys.executable, "-m", f"scripts.{words[0]}", *words[1:]]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
        try:
            while process.poll() is None and not (marker and marker.exists()):
                if time.perf_counter() - began > LIMIT:
                    raise TimeoutError(f"{' '.join(words[:2])} did nothing for {LIMIT:.0f} seconds")
                time.sleep(0.01)
            seconds = time.perf_counter() - began
        finally:
            if process.poll() is None:
                process.kill()
        process.wait()
        if (marker and not marker.exists()) or (not marker and process.returncode):
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read().decode()[-2000:]}")
        return seconds
