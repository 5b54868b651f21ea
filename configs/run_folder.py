"""Run folders: chosen once for all processes, and found again by what their run.json says."""

import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

from configs.checks import ConfigError
from configs.trainer_cfg import TrainerCfg
from configs.whole_file import sweep, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

LOCK = ".lock"
STAGES = ("train_stage_1", "train_stage_2")
NO_RUN = (OSError, ValueError, KeyError, TypeError)  # what reading a run.json that is not ours raises
PACKAGES = ("torch", "torchvision", "lightning", "numpy", "transformers", "albumentations")
_held: dict[Path, IO[str]] = {}  # run folders of this process


def choose_run_dir(cfg: TrainerCfg, name: str) -> Path:
    """The run folder: chosen once, by the first process, and handed to those it starts through the environment."""
    if is_child():
        return Path(os.environ["MASK_RUN_DIR"].partition(":")[2])
    if cfg.run_dir:
        folder = Path(cfg.run_dir)
        if cfg.resume == "none" and (folder / "last.ckpt").exists():
            raise ConfigError(
                f"train.run_dir {folder} already holds a training: continue it with --train.resume auto, "
                "or name another folder"
            )
        elsewhere = cfg.resume not in ("none", "auto") and Path(cfg.resume).parent.resolve() != folder.resolve()
        if elsewhere and (folder / "last.ckpt").exists():
            raise ConfigError(
                f"train.run_dir {folder} already holds another training than that of train.resume {cfg.resume}: "
                "name another folder"
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
        (folder / ".writable").unlink(missing_ok=True)  # another process of this training may be trying it, too
    except OSError as reason:
        raise ConfigError(
            f"the run folder {folder} cannot be written ({reason}): name another with --train.run-dir"
        ) from None
    if is_first():
        lock(folder)
        sweep(folder)
    os.environ["MASK_RUN_DIR"] = f"{os.getpid()}:{folder}"
    return folder


def launched_by_torchrun() -> bool:
    """Whether torchrun has started this process; Lightning sets the second of the two variables in its own."""
    return "LOCAL_WORLD_SIZE" in os.environ and "WORLD_SIZE" in os.environ


def is_child() -> bool:
    """Whether another process of this training started this one (a second training of one process does not count)."""
    chooser, _, chosen = os.environ.get("MASK_RUN_DIR", "").partition(":")
    return bool(chosen) and chooser != str(os.getpid())


def is_first() -> bool:
    """Whether this is the first of all processes of a training: the one that writes what there is once."""
    names = ("RANK", "NODE_RANK") if "RANK" in os.environ else ("NODE_RANK", "SLURM_PROCID")  # torchrun inside of srun
    return not is_child() and all(os.environ.get(name, "0") == "0" for name in names)


def lock(folder: Path, work: str = "training", option: str = "--train.run-dir") -> None:
    """Keep others out of ``folder`` until :func:`release`, or until this process ends, however it ends.

    The operating system holds the lock, so that none stays behind. Where it has no locks of files, there is none.
    Raises ConfigError if another process works there; ``option`` names the folder of this kind of ``work``.
    """
    if fcntl is None or folder.resolve() in _held:
        return
    file = open(folder / LOCK, "a+")  # noqa: SIM115  # it stays open for as long as the lock is to hold
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not shared with loader processes
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
            raise BlockingIOError  # released and taken again in between
    except (BlockingIOError, PermissionError, FileNotFoundError):
        file.seek(0)
        who = file.read().strip()
        file.close()
        raise ConfigError(
            f"another {work} is at work in {folder} ({who or 'of an unknown process'}): wait for it, stop it, "
            f"or name another folder with {option}"
        ) from None
    except OSError:  # a file system without locks
        if not os.fstat(file.fileno()).st_size:  # nobody holds it
            (folder / LOCK).unlink(missing_ok=True)
        file.close()
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    _held[folder.resolve()] = file


def release(folder: Path) -> None:
    """Let others work in ``folder``, and programs that this one starts choose folders of their own."""
    if os.environ.get("MASK_RUN_DIR") == f"{os.getpid()}:{folder}":
        del os.environ["MASK_RUN_DIR"]
    file = _held.pop(folder.resolve(), None)
    if file is not None:
        (folder / LOCK).unlink(missing_ok=True)
        file.close()


def describe_run(run_dir: Path, kind: str, data: str, status: str) -> None:
    """run.json: what a later stage looks for, and what started the training with which versions."""
    about = {
        "kind": kind, "data": data, "status": status, "checkpoint": "last.ckpt", "started_by": command_line(),
        "versions": versions(),
    }
    write_text(run_dir / "run.json", json.dumps(about, indent=2) + "\n")


def put_right(checkpoint: Path, kind: str, data: str) -> None:
    """Let run.json say that a training is complete whose ``checkpoint`` is: it may have been killed in between."""
    with contextlib.suppress(*NO_RUN):
        run = json.loads((checkpoint.parent / "run.json").read_text())
        if run["status"] != "complete" and run["checkpoint"] == checkpoint.name:
            describe_run(checkpoint.parent, kind, data, "complete")


def is_complete(checkpoint: Path) -> bool:
    """Whether ``checkpoint`` is there, and its run folder says that the training is complete."""
    with contextlib.suppress(*NO_RUN):
        return checkpoint.exists() and json.loads((checkpoint.parent / "run.json").read_text())["status"] == "complete"
    return False


def go_on(folder: Path) -> str:
    """The command that goes on with the training in ``folder``, whatever began it; in as many processes, if known."""
    words = ["bash", "scripts/train_stage_N.sh"]
    with contextlib.suppress(*NO_RUN):
        run = json.loads((folder / "run.json").read_text())
        stage = {"autoencoder": STAGES[0], "diffusion": STAGES[1]}[run["kind"]]
        words = ["bash", f"scripts/{stage}.sh"]
        words = parted(str(run["started_by"]))[0] or words
    there = str(folder)
    return shlex.join([*words, str(folder / "config.json"), "--train.run-dir", there, "--train.resume", "auto"])


def command_line() -> str:
    """The command that started this training; empty where another program did.

    Of several machines it is that of the first, with ``address`` in the place of its address.
    """
    name = Path(sys.argv[0]).stem
    if name not in STAGES:
        return ""
    words = ["bash", f"scripts/{name}.sh"]
    if launched_by_torchrun():
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if everywhere > 1:
            words = ["bash", "scripts/launch.sh", str(here), name]
        if everywhere > here:
            words = [f"NODES={everywhere // here}", "NODE=0", "HEAD=address", *words]
    return shlex.join([*words, *sys.argv[1:]])


def parted(command: str) -> tuple[list[str], list[str]]:
    """A command of :func:`command_line` as the words that start the program, and its arguments; no words of another."""
    words = shlex.split(command)
    end = next((number for number, word in enumerate(words, 1) if Path(word).stem in STAGES), 0)
    return (words[:end], words[end:]) if end else ([], [])


def versions() -> dict[str, str]:
    """Of Python, the system and the packages that decide a training's numbers."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def newest_complete(
    runs: str, kind: str, data: str, fits: Callable[[Path], bool] = lambda path: True
) -> Path | None:
    """The newest checkpoint of a complete training of this kind and data set below ``runs`` that ``fits``, or None."""
    found = []
    for about in Path(runs).glob("**/run.json"):
        with contextlib.suppress(*NO_RUN):
            run = json.loads(about.read_text())
            path = about.parent / run["checkpoint"]
            if (run["kind"], run["data"], run["status"]) == (kind, data, "complete") and path.exists():
                found.append(path)
    newest_first = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in newest_first if fits(path)), None)
