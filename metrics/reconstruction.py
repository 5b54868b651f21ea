"""Intersection over union and Dice of binary masks, mask by mask.

Both are ratios of pixel counts of one mask, averaged over masks afterwards: a pooled ratio would let the large masks
hide the small ones. Two empty masks agree, so they score 1.
"""

import torch
from torch import Tensor
from torchmetrics import Metric


def as_mask(x: Tensor) -> Tensor:
    """[...] bool foreground: a bool as is, an integer where it is not 0, a float where it is above one half."""
    if x.dtype == torch.bool:
        return x
    return x > 0.5 if x.is_floating_point() else x != 0


def _counts(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """([B] pixels in both masks, [B] pixels of the first plus pixels of the second), in float64 (MPS: float32).

    Raises:
        ValueError: if the two shapes differ or have no pixels beside the batch.
    """
    if pred.shape != target.shape or pred.ndim < 2:
        raise ValueError(f"masks to compare need one shape [B, ...], got {tuple(pred.shape)} and {tuple(target.shape)}")
    p, q = as_mask(pred).flatten(1), as_mask(target).flatten(1)                 # [B,P]
    wide = torch.float32 if p.device.type == "mps" else torch.float64  # MPS has no float64; counts below 2^24 are exact
    return (p & q).sum(1).to(wide), (p.sum(1) + q.sum(1)).to(wide)


def iou(pred: Tensor, target: Tensor) -> Tensor:
    """[B] |A and B| / |A or B| of masks [B, ...]; 1 where both are empty."""
    both, total = _counts(pred, target)
    either = total - both
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


def dice(pred: Tensor, target: Tensor) -> Tensor:
    """[B] 2 |A and B| / (|A| + |B|) of masks [B, ...]; 1 where both are empty."""
    both, total = _counts(pred, target)
    return torch.where(total > 0, 2 * both / total.clamp(min=1), torch.ones_like(both))


class MeanOfMasks(Metric):
    """Mean over all masks that were seen, on all processes; ``scores`` says what of each mask."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    score_sum: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("score_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def scores(self, pred: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds masks [B, ...]: bool, integers (0 is background) or probabilities (above one half is foreground)."""
        scores = self.scores(pred, target)
        self.score_sum += scores.sum()
        self.seen += len(scores)

    def compute(self) -> Tensor:
        """Mean score of the masks seen so far; nan before the first."""
        return self.score_sum / self.seen


class MaskIoU(MeanOfMasks):
    """Mean over masks of ``iou``."""

    def scores(self, pred: Tensor, target: Tensor) -> Tensor:
        return iou(pred, target)


class MaskDice(MeanOfMasks):
    """Mean over masks of ``dice``."""

    def scores(self, pred: Tensor, target: Tensor) -> Tensor:
        return dice(pred, target)
