"""One job of a bakeoff, in a process of its own: ``python -m scripts.bakeoff_job FOLDER`` (see scripts/bakeoff.py)."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.autoencoder_cfg import Stage1Cfg
from configs.cli import from_dict
from configs.diffusion_cfg import Stage2Cfg
from scripts.run import refuse_kindly


def main(argv: list[str] | None = None) -> None:
    (name,) = sys.argv[1:] if argv is None else argv
    folder = Path(name)
    about = json.loads((folder / "job.json").read_text())
    with refuse_kindly("bakeoff_job"):
        if about["stage"] == 1:
            from trainer import train_stage_1

            cfg = from_dict(Stage1Cfg, about["config"])
            train = replace(cfg.train, run_dir=str(folder), resume="auto", devices=1)
            train_stage_1(replace(cfg, train=train), folder.name)
        else:
            train_and_judge(folder, about)
        (folder / "best.ckpt").unlink(missing_ok=True)  # the last one is what is judged
        (folder / "done").touch()


def train_and_judge(folder: Path, about: dict[str, Any]) -> None:
    """Train stage 2 unless that is done, and judge it under each guidance."""
    from scripts.evaluate import main as evaluate
    from trainer import train_stage_2

    run = folder / "run.json"
    if not run.exists() or json.loads(run.read_text())["status"] != "complete":
        cfg = from_dict(Stage2Cfg, about["config"])
        train_stage_2(replace(cfg, train=replace(cfg.train, devices=1)), folder.name)  # what is judged here, and timed
        if json.loads(run.read_text())["status"] != "complete":
            raise SystemExit(130)  # interrupted: not to be judged
    for guidance in about["guidance"]:
        out = folder / f"evaluation-{guidance:g}.json"
        if not out.exists():
            evaluate([
                "--checkpoint", str(folder / "last.ckpt"), "--steps", *map(str, about["steps"]),
                "--num", str(about["num"]), "--seed", str(about["seed"]), "--guidance", str(guidance),
                "--classifier", about["classifier"], "--features", about["features"], "--search", str(about["search"]),
                "--out", str(out),
            ])


if __name__ == "__main__":
    main()
