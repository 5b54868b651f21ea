"""One file of averaged weights and their config: safetensors, which hold no code and which other programs can read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from configs.whole_file import write_whole

SUFFIX = ".safetensors"
MAKE = "bash scripts/train_stage_2.sh"  # what to do where there is no such file
KEY = "mask_model"  # the header's entry with kind, version and config, in JSON


def write_export(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write ``tensors`` and ``about`` (plain values) to ``path``, which is replaced only once all is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({name: value.contiguous() for name, value in tensors.items()}, {KEY: json.dumps(about)})
    write_whole(path, lambda file: file.write(content))


def read_export(path: Path) -> dict[str, Any]:
    """``{"state_dict": tensors in fp32 where they are fractions, KEY: about}``.

    Raises:
        ValueError: not a whole safetensors file, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(KEY, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as reason:
        raise ValueError(str(reason)) from None
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return {"state_dict": tensors, KEY: json.loads(about) if about else None}


def averaged(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What generates masks, of a stage-2 state: the averaged networks and the latents' scale, weights in ``dtype``.

    Also what a training that begins with it goes on with: the reader, if there is one.
    """
    kept = {}
    for name, value in state.items():
        if name.startswith(("average.", "autoencoder.average.", "reader.")):
            kept[name] = value.to(dtype) if value.is_floating_point() else value
        elif name.startswith("autoencoder.latent_"):
            kept[name] = value
    return kept


def blended(one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Means of two exported states, with ``share`` of the other: a network that was trained on and what it began with
    are joined by good ones (Wortsman et al. 2022, arXiv 2109.01903).

    Raises:
        ValueError: they are of different networks, or of different autoencoders.
    """
    names = [name for name in sorted({*one, *other}) if name not in one or name not in other
             or one[name].shape != other[name].shape]  # fmt: skip
    if names:
        raise ValueError(f"their networks differ ({names[0]})")
    for name, value in one.items():
        if name.startswith("autoencoder.") and not torch.equal(value.bfloat16(), other[name].bfloat16()):
            raise ValueError(f"their autoencoders differ ({name})")
    return {name: torch.lerp(value, other[name], share) if value.is_floating_point() else value
            for name, value in one.items()}  # fmt: skip


def with_twins(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole stage-2 state from an exported one: a twin that is not there begins as the average."""
    twins = {"average.": ("net.", "teacher."), "autoencoder.average.": ("autoencoder.vae.",)}
    whole = dict(state)
    for name, value in state.items():
        for mine, others in twins.items():
            if name.startswith(mine):
                for other in others:
                    whole.setdefault(other + name.removeprefix(mine), value)
    return whole
