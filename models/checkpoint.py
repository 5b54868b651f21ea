"""Reading checkpoints: tensors and plain values only, and one kind of error."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from configs.checks import first_line
from configs.shipped import SHIPPED
from configs.whole_file import file_hash
from models.export import KEY, SUFFIX, read_export
from models.parts import GROUPS, WEIGHTS, is_parts, read_about, read_whole, together

FORMAT_VERSION = 1


class CheckpointError(Exception):
    """A checkpoint that cannot be used: which file, why, and what to do."""

    def __init__(self, path: str | Path, reason: str, hint: str) -> None:
        self.path, self.reason, self.hint = Path(path), reason, hint
        super().__init__(f"{path}: {reason}; {hint}")


def describe(kind: str, config: Mapping[str, Any], *, complete: bool, data: str) -> dict[str, Any]:
    """What a checkpoint says of itself: kind, format version, plain config, data set, and whether training ended."""
    return {"kind": kind, "version": FORMAT_VERSION, "config": dict(config), "complete": complete, "data": data}


def read_checkpoint(
    path: str | Path, kind: str, make: str, only: str | None = None, also: str | None = None
) -> dict[str, Any]:
    """The checkpoint's dictionary, read without running code from it; of a file, an export, or a folder of parts.

    ``kind`` is "autoencoder" or "diffusion", ``also`` another that will do; ``make`` is the command that makes one, for
    the error's hint. Of a folder, with ``only``, weights whose names begin otherwise have shapes and no values.
    Raises CheckpointError for a missing, damaged or foreign one.
    """
    hint = f"make one with: {make}"
    if "://" in str(path):
        raise CheckpointError(path, "is an address, and checkpoints are read from files only", "download it first")
    path = Path(path)
    if not path.exists():
        there = f"name {', '.join(SHIPPED)} or a last.ckpt of yours, or " if "diffusion" in (kind, also) else ""
        raise CheckpointError(path, "there is no such checkpoint", there + hint)
    if path.is_dir() and not is_parts(path):
        raise CheckpointError(path, "is a folder, not a checkpoint file", f"name the .ckpt file inside it, or {hint}")
    exported = path.suffix == SUFFIX
    try:
        if exported and not is_as_told(path):
            raise ValueError(f"its SHA-256 is not the one that {path.with_suffix('.json').name} tells")
        if path.is_dir():
            content = read_folder(path, only or "")
        else:
            content = read_export(path) if exported else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:  # torch raises six unrelated types for damaged files
        raise CheckpointError(path, f"is damaged or not a checkpoint ({first_line(reason, 100)})", hint) from reason
    about = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(about, dict):
        raise CheckpointError(path, "is a checkpoint of another program", hint)
    if about.get("kind") not in (kind, also or kind):
        raise CheckpointError(path, f"holds a {about.get('kind')!r} network, but a {kind!r} one is needed", hint)
    if about.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            path, f"has format version {about.get('version')}, but this program reads {FORMAT_VERSION}", hint
        )
    return content


@contextmanager
def whole(path: str | Path, make: str) -> Iterator[None]:
    """Raises CheckpointError where the parts of a readable checkpoint are missing or do not fit each other."""
    try:
        yield
    except (ImportError, OSError):  # a text encoder that is not here
        raise
    except Exception as reason:  # a damaged or doctored file: KeyError, RuntimeError, AttributeError, MemoryError ...
        why = f"its weights and its config do not fit ({first_line(reason, 200)})"
        raise CheckpointError(path, why, f"make one with: {make}") from reason


def read_folder(path: Path, only: str) -> dict[str, Any]:
    """A checkpoint in parts without the optimiser's state. Raises ValueError, and others, for one that is not whole."""
    about = read_about(path)
    tensors = read_whole(path, lambda name: name.startswith(WEIGHTS + only))
    return together({name: x for name, x in tensors.items() if name.startswith(WEIGHTS)}, about | {GROUPS: []})


def is_as_told(path: Path) -> bool:
    """False where the JSON file beside an export tells another SHA-256 than the export has."""
    try:
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return True  # no such file, or one of something else
    return bool(told == file_hash(path))
