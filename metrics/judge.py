"""What turns masks into features: a classifier of the prompts; where prompts are no classes, the stage-1 encoder."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metrics.classifier import accuracy, load_classifier, look, save_classifier, train_classifier
from metrics.geometry import are_captions

MOST_CLASSES = 200
ENCODER_GRID = 4


@dataclass(frozen=True)
class Judge:
    """A frozen view of masks."""

    name: str
    """Of the features, to stand beside every number made with them."""
    view: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    """Masks [N,H,W] uint8 of 0 and 1 -> features [N,D], and logits [N,K] where there is a classifier."""
    score: Callable[[Tensor, list[str]], float] | None
    """(logits, prompts) -> prompt accuracy; None where prompts are no classes."""


def is_classes(prompts: list[str]) -> bool:
    """True when the prompts are few enough, and at least two, to be learned as classes, and say no geometry: at most
    half as many as there are masks, or most would have a single one."""
    kinds = len(set(prompts))
    return 2 <= kinds <= min(MOST_CLASSES, len(prompts) // 2) and not are_captions(prompts)


def classifier_judge(
    images: Tensor, prompts: list[str], *, steps: int, seed: int, path: Path | None,
    pause: Callable[[], None] = lambda: None,
) -> Judge:
    """A classifier of masks [N,H,W]: read from ``path`` if that exists, else trained (and written to ``path``).

    ``pause`` is handed to the training.

    Raises:
        ValueError: the file is no classifier, or was trained on other prompts or another mask size.
    """
    if path is not None and path.exists():
        net, size = load_classifier(path)
        if net.labels != sorted(set(prompts)) or size != images.shape[-1]:
            raise ValueError(f"{path} was trained on other data ({size} pixels, {len(net.labels)} prompts)")
    else:
        net = train_classifier(images, prompts, steps=steps, seed=seed, pause=pause)
        if path is not None:
            save_classifier(net, path, images.shape[-1])
    return Judge("classifier, 64 features", lambda x: look(net, x), lambda logits, p: accuracy(net, logits, p))


def forget_other(path: Path, images: Tensor, prompts: list[str]) -> None:
    """Remove a classifier of an earlier training that cannot judge these masks [N,H,W] and prompts; warns of it."""
    if not path.exists():
        return
    try:
        net, size = load_classifier(path)
        if net.labels == sorted(set(prompts)) and size == images.shape[-1]:
            return
    except ValueError:
        pass
    warnings.warn(f"{path} knows other prompts than the data has now: it is trained anew, and distances change with it",
                  stacklevel=2)  # fmt: skip
    path.unlink()


def encoder_judge(autoencoder: Any) -> Judge:
    """The stage-1 latent mean [Cz,h,w], averaged to a grid of 4x4 cells; there is no prompt accuracy."""

    @torch.inference_mode()
    def view(masks: Tensor) -> tuple[Tensor, None]:
        device = next(autoencoder.parameters()).device
        parts = []
        for part in masks.split(256):
            z = autoencoder.to_latent(part[:, None].float().to(device))         # [B,Cz,h,w]
            parts.append(F.adaptive_avg_pool2d(z.float(), ENCODER_GRID).flatten(1).cpu())
        return torch.cat(parts), None

    return Judge(f"stage-1 latent means on a {ENCODER_GRID}x{ENCODER_GRID} grid", view, None)
