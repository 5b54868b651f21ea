"""Going on from a checkpoint: which one, what is different now, and what must stay as it was."""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.autoencoder_cfg import Stage1Cfg
from configs.cli import differences, from_dict
from configs.diffusion_cfg import Stage2Cfg
from configs.run_folder import put_right
from configs.trainer_cfg import TrainerCfg
from models.checkpoint import CheckpointError, read_checkpoint, whole
from models.export import KEY
from models.parts import is_parts, read_about

MADE = "made_with"  # a checkpoint's entry with what decides the bits of a training
STATE = frozenset(("state_dict", "global_step", "loops", "optimizer_states", "lr_schedulers"))
"""What Lightning needs to go on; an export has weights alone."""
UNDO = "take back what was changed, or start anew in another folder"


@dataclass(frozen=True)
class Resume:
    """A checkpoint to go on from."""

    path: Path
    content: dict[str, Any]
    changed: list[str]
    """Fields of the config that differ from the checkpoint's."""

    def nothing_to_do(self, cfg: TrainerCfg) -> bool:
        """Whether the training has ended already; a run folder whose training was killed just then is put right."""
        about = self.content[KEY]
        done = about["complete"] and self.content["global_step"] >= cfg.max_steps
        if done:
            put_right(self.path, about["kind"], about["data"])
            print(f"nothing to do: {self.path} is complete after {self.content['global_step']} steps, "
                  f"and train.max_steps is {cfg.max_steps}")  # fmt: skip
        return done


def find_resume(cfg: Stage1Cfg | Stage2Cfg, kind: str) -> Resume | None:
    """What ``cfg.train.resume`` asks for; prints which file it is and what differs from its config.

    Raises CheckpointError for one that cannot be used, but for "auto" only if there is no older one to fall back to.
    """
    train, make = cfg.train, "a training of this stage"
    if train.resume == "none" or (train.resume == "auto" and not train.run_dir):
        return None
    found = [Path(train.resume)]
    if train.resume == "auto":
        found = sorted(Path(train.run_dir).glob("*.ckpt"), key=progress, reverse=True)
    for path in found:
        try:
            content = read_checkpoint(path, kind, make, only="autoencoder.")
            missing = sorted(STATE - content.keys())
            if missing:
                raise CheckpointError(
                    path, f"has no {missing[0]}, so that a training cannot go on from it",
                    "name a last.ckpt or best.ckpt; to begin stage 2 with the weights of an export, use --init",
                )
            with whole(path, make):
                old = from_dict(type(cfg), content[KEY]["config"])
        except CheckpointError as reason:
            if train.resume != "auto" or path == found[-1]:
                raise
            warnings.warn(f"{reason}; trying an older one", stacklevel=2)
            continue
        require_optimizer(path, content, old.optim.muon_lr, cfg)
        apart = differences(old, cfg)
        changed = [line for line in apart if not line.startswith(("train.resume:", "train.run_dir:"))]
        print(f"resuming from {path}", *changed, sep="\n  ", flush=True)
        return Resume(path, lighter(content, "autoencoder."), changed)
    print(f"{train.run_dir} holds no checkpoint to resume from: starting anew", flush=True)
    return None


def require_optimizer(path: Path, content: Mapping[str, Any], before: float, cfg: Stage1Cfg | Stage2Cfg) -> None:
    """Raise CheckpointError where a training that is not over would go on with Muon and began without it, or so."""
    over = content[KEY]["complete"] and content["global_step"] >= cfg.train.max_steps
    if (before > 0) != (cfg.optim.muon_lr > 0) and not over:
        raise CheckpointError(
            path, f"was trained with optim.muon_lr {before:g}, and its optimiser's state is of no use with "
            f"{cfg.optim.muon_lr:g}", f"go on with --optim.muon-lr {before:g}",
        )  # fmt: skip


def progress(path: Path) -> tuple[int, float]:
    """(update, time of writing) of a checkpoint, by which the furthest is found also after files were copied; one that
    cannot be read comes before all, to be warned of."""
    try:
        about = read_about(path) if is_parts(path) else torch.load(path, "cpu", weights_only=True, mmap=True)
        return int(about["global_step"]), path.stat().st_mtime
    except Exception:  # torch raises six unrelated types for damaged files
        return sys.maxsize, 0.0


def lighter(content: dict[str, Any], kept: str) -> dict[str, Any]:
    """A checkpoint whose weights have shapes and strides but no values, save those whose names begin with ``kept``.

    Lightning reads the file once more; the memory is the training's meanwhile.
    """
    state = {name: x if name.startswith(kept) else x.to("meta") for name, x in content["state_dict"].items()}
    return content | {"state_dict": state, "optimizer_states": []}


def as_before(cfg: TrainerCfg, content: Mapping[str, Any]) -> TrainerCfg:
    """What "auto" was measured to be when the checkpoint was made: another choice would round differently."""
    named = {"32-true": "fp32", "bf16-mixed": "bf16-mixed", "16-mixed": "fp16-mixed"}
    if cfg.precision == "auto" and MADE in content:
        cfg = replace(cfg, precision=named[content[MADE]["precision"]])  # type: ignore[arg-type]  # one of its literals
    if cfg.channels_last == "auto" and cfg.strategy not in ("fsdp", "hybrid"):  # which have one layout
        filters = [value for value in content["state_dict"].values() if value.ndim == 4]
        last = any(not f.is_contiguous() and f.is_contiguous(memory_format=torch.channels_last) for f in filters)
        cfg = replace(cfg, channels_last="on" if last else "off")
    return cfg


def require_fit(path: Path, state: Mapping[str, Tensor], module: nn.Module, changed: list[str]) -> None:
    """Raise CheckpointError unless ``state`` has the tensors of ``module``; ``changed`` says how the configs differ."""
    mine, theirs = ({name: tuple(value.shape) for name, value in part.items()} for part in (module.state_dict(), state))
    wrong = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            path, f"holds another network than this config describes: {name} has shape {theirs.get(name)} there and "
            f"{mine.get(name)} here, and {len(wrong) - 1} more differ (config: {', '.join(changed) or 'the same'})",
            UNDO,
        )  # fmt: skip
