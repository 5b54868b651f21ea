"""What a sampler is: how to make training targets and the one loss around them, beside the steps of a solver."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.sampler_cfg import SamplerCfg
from samplers.net import Net, spread
from samplers.solver import Solver

LOSS_OFFSET = 0.01  # keeps the adaptive weight of a perfect row finite (Geng et al. 2025)
Measure = Callable[[Tensor, Tensor], Tensor]
"""(answer, wanted), both [B,C,h,w] -> the error of each row [B]."""


@dataclass(frozen=True)
class When:
    """Where the training stands."""

    step: int = 0
    """Number of the training step, the same on all ranks, for samplers that alternate between kinds of rows."""
    progress: float = 1.0
    """Share of the training that is done, for what changes in its course."""


def mean_squared_error(answer: Tensor, wanted: Tensor) -> Tensor:
    """[B,C,h,w] twice -> [B]."""
    return (answer - wanted).square().flatten(1).mean(1)


START = When()


@dataclass(frozen=True)
class Targets:
    """One batch of regression problems for the network."""

    x: Tensor  # [B,C,h,w] what the network sees
    t: Tensor  # [B]
    dt: Tensor  # [B]
    cond: Any  # B rows, after condition dropout
    y: Tensor  # [B,C,h,w] what it should answer; carries no gradient
    weight: Tensor  # [B]
    parts: dict[str, slice]  # rows to report apart, such as "flow" and "consistency"
    gain: Tensor | None = None  # [B] the adaptive weight sees the error as if the difference were this much larger
    power: Tensor | None = None  # [B] loss_power, where rows differ in it
    ends: Tensor | None = None  # [R] rows whose step ends on a mask, where the loss looks at the end too
    end_weight: float = 0.0  # of what it sees there
    counts: Tensor | None = None  # [B] how many rows of the batch, all the same, each of these stands for; None: one

    def mean(self, values: Tensor, rows: slice | Tensor = slice(None)) -> Tensor:
        """Of the ``values`` of ``rows``, each as often as its row counts; 0 where there are none."""
        if len(values) == 0:
            return values.sum()
        if self.counts is None:
            return values.mean()
        counts = self.counts[rows].to(values.dtype)
        return (values * counts).sum() / counts.sum()


class Sampler(Solver):
    """A training objective and the steps that belong to it; it has no parameters and keeps nothing between calls."""

    cfg: SamplerCfg

    @abstractmethod
    def draw(self, x1: Tensor, cond: Any, teacher: Net, when: When) -> Targets:
        """``targets`` after condition dropout; called without gradients."""

    def asks_teacher(self, when: When) -> bool:
        """Whether ``draw`` is going to call the teacher, so that making it ready for several calls pays."""
        return False

    def targets(self, x1: Tensor, cond: Any, teacher: Net, when: When = START) -> Targets:
        """Draw what the network should answer for a batch of data.

        Args:
            x1: data [B,C,h,w].
            cond: B prompts (see ``net.Cond``).
            teacher: network in eval mode that gives self-consistency targets; most samplers ignore it.
            when: where the training stands.
        """
        # Prompts are dropped in all rows and before any teacher call. The published shortcut recipe drops them in the
        # flow rows only, which leaves u(x, t, dt > 0, nothing) untrained, and guidance reads just that.
        # The text projection is trained through ``cond``, so this line stays outside of no_grad.
        if self.cfg.condition_drop > 0:
            cond = cond.drop(torch.rand(len(x1), device=x1.device) < self.cfg.condition_drop)
        with torch.no_grad():
            return self.draw(x1, cond, self.reading(teacher), when)

    def loss(
        self, net: Net, x1: Tensor, cond: Any, *, teacher: Net, when: When = START,
        measure: Measure = mean_squared_error, perceptual: Measure | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted error of one batch, from one call of ``net``.

        Args:
            net: network to train.
            x1: data [B,C,h,w].
            cond: B prompts (see ``net.Cond``).
            teacher: see ``targets``; no gradient reaches it.
            when: see ``targets``.
            measure: what an error is; the mean of squares if nothing else is asked for.
            perceptual: error of the masks' latents on which the rows ``ends`` of the targets land, where there are any.

        Returns:
            The scalar loss, and the plain error of each part, detached; ``perceptual`` beside them where it was asked
            (0 in a batch none of whose rows ends on a mask).
        """
        goal = self.targets(x1, cond, teacher, when)
        answer = self.reading(net)(goal.x, goal.t, goal.dt, goal.cond)
        wide = torch.promote_types(answer.dtype, torch.float32)
        error = measure(answer.to(wide), goal.y)  # [B]
        parts = {name: goal.mean(error.detach()[rows], rows) for name, rows in goal.parts.items()}
        if goal.ends is not None and perceptual is not None:
            x, dt = goal.x[goal.ends], spread(goal.dt[goal.ends], goal.x)
            seen = perceptual(x + dt * answer[goal.ends].to(wide), x + dt * goal.y[goal.ends]).to(error.dtype)  # [R]
            parts["perceptual"] = goal.mean(seen.detach(), goal.ends)
            error = error.index_add(0, goal.ends, goal.end_weight * seen)
        weight = goal.weight
        power = self.cfg.loss_power if goal.power is None else goal.power
        if goal.power is not None or self.cfg.loss_power > 0:
            size = error.detach() if goal.gain is None else error.detach() * goal.gain**2
            weight = weight / (size + LOSS_OFFSET) ** power  # Geng et al. 2025, section 4.3
        return goal.mean(weight * error), parts
