"""What a set of masks is measured against, and all numbers about it at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from metrics import geometry
from metrics.coverage import density_coverage, precision_recall
from metrics.features import FeatureNet
from metrics.frechet import frechet_distance
from metrics.judge import Judge
from metrics.kernel import kernel_distance
from metrics.memorisation import best_match, memorisation
from metrics.retrieval import retrieval_accuracy
from metrics.sets import mean_pairwise_iou
from metrics.shape import shape_distances

SEARCHED = 64
"""Pixels a side to which larger masks are shrunk before their nearest training masks are looked for."""
FEWEST_FOR_BALLS = 6  # density and coverage look at the fifth neighbour
CANDIDATES = 100


@dataclass(frozen=True)
class Yardstick:
    """Held-out masks [N,H,W] and training masks [M,H,W], both uint8 of 0 and 1, and the networks that look at them."""

    held_out: Tensor
    training: Tensor
    judge: Judge
    features: FeatureNet
    search: int = 1000
    """Masks of a set whose nearest training mask is looked for (0: none): the search takes longest on large data."""

    @cached_property
    def held_out_features(self) -> Tensor:
        return self.features(self.held_out)

    @cached_property
    def held_out_best(self) -> Tensor:
        """[n] best IoU of held-out masks with any training mask."""
        return best_match(searched(spread_out(self.held_out, self.search)), self.training_searched)[0]

    @cached_property
    def training_searched(self) -> Tensor:
        return searched(self.training)

    def frechet(self, masks: Tensor) -> float:
        """Squared Frechet distance of masks [K,H,W] to the held-out ones."""
        return frechet_distance(self.features(masks), self.held_out_features)

    def distances(self, masks: Tensor) -> dict[str, float]:
        """How far masks [K,H,W] are from the held-out ones; the same of real masks is the floor."""
        features, real = self.features(masks), self.held_out_features
        found = {"frechet": frechet_distance(features, real), "kernel": kernel_distance(features, real)["mean"]}
        if min(len(features), len(real)) >= FEWEST_FOR_BALLS:
            found |= precision_recall(real, features) | density_coverage(real, features)
        found |= {f"shape_{name}": value for name, value in shape_distances(masks, self.held_out).items()}
        return found | {"pairwise_iou": mean_pairwise_iou(masks)}

    def memorised(self, masks: Tensor) -> dict[str, float]:
        """Median best IoU of masks [K,H,W] with training masks, and the share above the held-out's 99th percentile."""
        if not self.search:
            return {}
        best, _ = best_match(searched(spread_out(masks, self.search)), self.training_searched)
        found = memorisation(best, self.held_out_best)
        return {"memorised": found["median"], "memorised_above": found["share_above"]}

    def adherence(self, masks: Tensor, prompts: list[str], own: list[int], seed: int) -> dict[str, float]:
        """Whether masks [K,H,W] are what their prompts say.

        Args:
            prompts: of the K masks.
            own: rows of ``held_out`` that have these prompts.
            seed: of the draw of other candidates.

        Returns:
            ``accuracy`` where prompts are classes; else ``retrieval``, if there are enough other captions. For
            captions of geometry, also the shares of metrics.geometry.adherence.
        """
        found = geometry.adherence(masks, prompts)
        logits = self.judge.view(masks)[1]
        if self.judge.score and logits is not None:
            return found | {"accuracy": self.judge.score(logits, prompts)}
        try:
            real = self.held_out_features[own]
            share = retrieval_accuracy(self.features(masks), real, prompts, candidates=CANDIDATES, seed=seed)
        except ValueError:  # fewer than 100 different captions
            return found
        return found | {"retrieval": share}


def searched(masks: Tensor) -> Tensor:
    """Masks [N,H,W] as they are looked for: larger ones shrunk by area to SEARCHED pixels a side."""
    if masks.shape[-1] <= SEARCHED or not len(masks):
        return masks
    parts = (adaptive_avg_pool2d(part.float(), SEARCHED) >= 0.5 for part in masks.split(256))
    return torch.cat([part.to(masks.dtype) for part in parts])


def spread_out(masks: Tensor, most: int) -> Tensor:
    """At most ``most`` of the masks [N,H,W], evenly over their order."""
    return masks if len(masks) <= most else masks[torch.linspace(0, len(masks) - 1, most).long()]
