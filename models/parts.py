"""A checkpoint in parts: a folder to which each process wrote its share of the tensors, as safetensors.

torch.distributed.checkpoint (DCP) shares out the work. Its own files are not used: their ``.metadata`` is a pickle,
which runs what it says when it is read. Here DCP writes safetensors (``HuggingFaceStorageWriter``), whose headers say
in JSON which part of which tensor a file has; plain values are in one more file, written last, which lists the others.
"""

import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from configs.whole_file import PARTS_ABOUT, PREFIX, SUFFIX, take_place, umask, write_whole

ABOUT = PARTS_ABOUT
ENDING = ".parts"
WEIGHTS = "state_dict."  # what names of weights begin with; other tensors are the optimiser's
GROUPS = "optimizer_groups"  # the entry of ABOUT with the optimisers' parameter groups
PARTS = "parts"  # the entry of ABOUT that lists files and tensors
_OWN = re.compile(rf"(.+)-\d+-\d+{re.escape(ENDING)}")  # a folder that a link has named
_NAME = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")


def apart(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Lightning's dictionary -> all tensors by name, and the rest; optimiser states are by the names of parameters."""
    rest = dict(checkpoint)
    tensors = {f"{WEIGHTS}{name}": value for name, value in rest.pop("state_dict").items()}
    states = rest.pop("optimizer_states", [])
    for number, state in enumerate(states):
        for name, moments in state["state"].items():
            tensors |= {f"optimizer.{number}.{name}.{moment}": value for moment, value in moments.items()}
    return tensors, rest | {GROUPS: [state["param_groups"] for state in states]}


def together(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse, as a training in one process has it: optimiser states are by the numbers of parameters."""
    rest = {name: value for name, value in about.items() if name not in (GROUPS, PARTS)}
    weights = {name.removeprefix(WEIGHTS): value for name, value in tensors.items() if name.startswith(WEIGHTS)}
    states = []
    for number, groups in enumerate(about[GROUPS]):
        names = [name for group in groups for name in group["params"]]
        begin = f"optimizer.{number}."
        own = {name.removeprefix(begin): value for name, value in tensors.items() if name.startswith(begin)}
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in own.items():
            parameter, _, moment = name.rpartition(".")
            state.setdefault(names.index(parameter), {})[moment] = value
        counted = iter(range(len(names)))
        numbered = [group | {"params": [next(counted) for _ in group["params"]]} for group in groups]
        states.append({"state": state, "param_groups": numbered})
    return rest | {"state_dict": weights, "optimizer_states": states}


def is_parts(path: Path) -> bool:
    return (path / ABOUT).is_file()


def write_parts(path: Path, tensors: Mapping[str, Tensor], rest: Mapping[str, Any], first: bool) -> None:
    """Called by all processes: ``tensors`` (shares of them, or the same everywhere) and plain values ``rest``.

    ``path`` becomes a link to a new folder beside it, once that is whole; those of earlier calls that no link names are
    then removed.
    ``first`` is True in process 0.

    Raises:
        RuntimeError: it could not be written; in all processes alike.
    """
    from torch.distributed import checkpoint as dcp  # slow to import

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    prefix = f"{PREFIX}{path.name}."
    folder = Path(_by_first(first, lambda: tempfile.mkdtemp(prefix=prefix, suffix=SUFFIX, dir=path.parent)))
    try:
        dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
        _by_first(first, lambda: _finish(folder, path, shapes, rest))
    except BaseException as reason:
        if first:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(reason, dcp.CheckpointException):
            failures = [str(failure[0]) for failure in reason.failures.values()]
            raise RuntimeError(failures[0] if failures else str(reason)) from reason
        raise


def _by_first(first: bool, work: Callable[[], str]) -> str:
    """What ``work`` answers in process 0, in all; raises RuntimeError in all if it raises there."""
    told = ["", ""]
    if first:
        try:
            told[0] = work()
        except (OSError, RuntimeError) as reason:
            told[1] = f"{reason}" or type(reason).__name__
    if distributed.is_initialized():
        distributed.broadcast_object_list(told, 0)
    if told[1]:
        raise RuntimeError(told[1])
    return told[0]


def _finish(folder: Path, path: Path, shapes: Mapping[str, tuple[int, ...]], rest: Mapping[str, Any]) -> str:
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    about = {**rest, PARTS: {"files": files, "shapes": {name: list(shape) for name, shape in shapes.items()}}}
    write_whole(folder / ABOUT, lambda file: torch.save(about, file))
    os.chmod(folder, 0o777 & ~umask())  # that of mkdtemp is for its owner alone
    number = 1
    while os.path.lexists(named := path.parent / f"{path.stem}-{rest.get('global_step', 0)}-{number}{ENDING}"):
        number += 1
    os.rename(folder, named)
    point(path, named.name)
    links = {link.stem: os.readlink(link) for link in path.parent.iterdir() if link.is_symlink()}
    for old in path.parent.glob(f"*{ENDING}"):
        own = _OWN.fullmatch(old.name)
        if own and own[1] in links and old.name not in links.values():
            shutil.rmtree(old, ignore_errors=True)
    return named.name


def point(path: Path, target: str) -> None:
    """Make ``path`` a link to ``target`` in the same folder, at once, whatever it was."""
    link = path.with_name(f"{PREFIX}{path.name}.link{SUFFIX}")
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    take_place(link, path)


def read_about(folder: Path) -> dict[str, Any]:
    """The plain values of a checkpoint, and under ``PARTS`` what it lists; nothing in the folder is run.

    Raises:
        ValueError: files are missing, cut off or not listed.
    """
    about = torch.load(folder / ABOUT, map_location="cpu", weights_only=True)
    if not isinstance(about, dict) or not isinstance(about.get(PARTS), dict):
        raise ValueError(f"{ABOUT} lists no parts")
    files = about[PARTS]["files"]
    there = {file.name: file.lstat().st_size for file in folder.iterdir() if file.name != ABOUT}
    for name in sorted(files.keys() | there.keys()):
        if name not in files or not _NAME.fullmatch(name):
            raise ValueError(f"{name} is no part of it")
        if there.get(name) != files[name]:
            raise ValueError(f"its part {name} has {there.get(name, 'no')} bytes in place of {files[name]}")
    _require_whole(folder, about[PARTS]["shapes"])
    return about


def _require_whole(folder: Path, shapes: Mapping[str, Iterable[int]]) -> None:
    """Raise ValueError unless the headers of the parts cover each tensor once."""
    from torch.distributed import checkpoint as dcp  # slow to import

    stored = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    if stored.keys() != shapes.keys():
        raise ValueError(f"its parts hold other tensors than it lists, such as {min(stored.keys() ^ shapes.keys())}")
    for name, shape in shapes.items():
        chunks = {tuple(chunk.offsets): chunk for chunk in stored[name].chunks}  # type: ignore[union-attr]  # all tensors
        held = sum(math.prod(chunk.sizes) for chunk in chunks.values())
        if tuple(stored[name].size) != tuple(shape) or held != math.prod(shape):  # type: ignore[union-attr]  # as above
            raise ValueError(f"its parts do not make up {name} of shape {tuple(shape)}")


def read_into(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Called by all processes: fill ``tensors``, whole or shares, whatever the number of processes that wrote them."""
    from torch.distributed import checkpoint as dcp  # slow to import

    dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))


def read_whole(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors whose names are ``wanted``, put together by this process alone; the others without values ("meta").

    Call :func:`read_about` before, which looks at whether the folder is whole.
    """
    from torch.distributed import checkpoint as dcp  # slow to import

    reader = dcp.HuggingFaceStorageReader(str(folder))
    tensors = {
        name: torch.zeros(stored.size, dtype=stored.properties.dtype, device="cpu" if wanted(name) else "meta")  # type: ignore[union-attr]  # all tensors
        for name, stored in reader.read_metadata().state_dict_metadata.items()
    }
    filled = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process.*")  # it is
        dcp.load(filled, storage_reader=reader, no_dist=True)
    return tensors
