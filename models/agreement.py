"""What the processes of a training found on disk, each for itself, and must have found alike."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class DisagreementError(RuntimeError):
    """Two processes of a training began with different things."""

    in_all_processes = True


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Short SHA-256 of a state dict: names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def require_agreement(found: Sequence[Mapping[str, object]]) -> None:
    """Compare what each process found: thing -> value, processes in their order.

    Raises:
        DisagreementError: a thing that two of them found different; the sentence is the same in all of them.
    """
    for thing in found[0]:
        values = [own.get(thing) for own in found]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise DisagreementError(
                f"the processes of this training do not agree on {thing}: process 0 found {values[0]}, process {other} "
                f"{values[other]}; let all machines see the same files, leave these alone while a training starts "
                "(name stage 1 with --autoencoder), and start it again"
            )
