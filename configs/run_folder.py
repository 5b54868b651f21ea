"""Run folders: chosen once for all processes, and found again by what their run.json says."""

import contextlib
import json
import os
from datetime import datetime
from pathlib import Path

from configs.checks import ConfigError
from configs.trainer_cfg import TrainerCfg


def choose_run_dir(cfg: TrainerCfg, name: str) -> Path:
    """The run folder: chosen once, by the first process, and handed to those it starts through the environment."""
    chooser, _, chosen = os.environ.get("MASK_RUN_DIR", "").partition(":")
    if chosen and chooser != str(os.getpid()):  # a second training of one process chooses anew
        return Path(chosen)
    if cfg.run_dir:
        folder = Path(cfg.run_dir)
        if cfg.resume == "none" and (folder / "last.ckpt").exists():
            raise ConfigError(
                f"train.run_dir {folder} already holds a training: continue it with --train.resume auto, "
                "or name another folder"
            )
    else:
        if cfg.resume == "auto":
            raise ConfigError("train.resume is 'auto', but no folder is named: add --train.run-dir FOLDER")
        if "WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ:
            raise ConfigError(
                "this process was started by a launcher, and each process would name its own run folder: "
                "add --train.run-dir FOLDER"
            )
        stamp = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        folder, number = Path(cfg.runs) / stamp, 1
        while folder.exists():
            number += 1
            folder = Path(cfg.runs) / f"{stamp}-{number}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as reason:
        raise ConfigError(
            f"the run folder {folder} cannot be written ({reason}): name another with --train.run-dir"
        ) from None
    os.environ["MASK_RUN_DIR"] = f"{os.getpid()}:{folder}"
    return folder


def describe_run(run_dir: Path, kind: str, data: str, status: str) -> None:
    """run.json: what a later stage looks for."""
    about = {"kind": kind, "data": data, "status": status, "checkpoint": "last.ckpt"}
    (run_dir / "run.json").write_text(json.dumps(about, indent=2) + "\n")


def newest_complete(runs: str, kind: str, data: str) -> Path | None:
    """The newest checkpoint of a complete training of this kind and data set below ``runs``, or None."""
    found = []
    for about in Path(runs).glob("**/run.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            run = json.loads(about.read_text())
            path = about.parent / run["checkpoint"]
            if (run["kind"], run["data"], run["status"]) == (kind, data, "complete") and path.exists():
                found.append(path)
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
