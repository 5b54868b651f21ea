"""What a sampler is: how to make training targets, how to take one step, and the one loss and one loop around them.

Time runs from 0 (noise) to 1 (data) in every sampler; ``dt`` is the step that the network is asked to take, 0 meaning
the instantaneous velocity.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from configs.sampler_cfg import SamplerCfg
from samplers.guidance import Guided
from samplers.net import Net, Randn

LOSS_OFFSET = 0.01  # keeps the adaptive weight of a perfect row finite (Geng et al. 2025)
S = TypeVar("S", bound="Sampler")
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


class Sampler(ABC):
    """A training objective and the steps that belong to it; it has no parameters and keeps nothing between calls."""

    name: ClassVar[str]
    """What users call it."""
    drives: ClassVar[type[SamplerCfg]]
    """Networks trained under this config, or one derived from it, understand this sampler's questions."""
    answers: ClassVar[str]
    """What a network trained by this sampler answers, as half a sentence."""

    def __init__(self, cfg: SamplerCfg) -> None:
        self.cfg = cfg

    @classmethod
    def driving(cls: type[S], trained: SamplerCfg, cfg: SamplerCfg) -> S:
        """This sampler with the settings ``cfg``, for a network that was trained under ``trained``."""
        return cls(cfg)

    @abstractmethod
    def draw(self, x1: Tensor, cond: Any, teacher: Net, when: When) -> Targets:
        """``targets`` after condition dropout; called without gradients."""

    @abstractmethod
    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        """Move ``x`` [B,C,h,w] from time ``t`` to the later time ``s``."""

    def reading(self, net: Net) -> Net:
        """The network as this sampler understands it; most take its answers as they are."""
        return net

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
        measure: Measure = mean_squared_error,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted error of one batch, from one call of ``net``.

        Args:
            net: network to train.
            x1: data [B,C,h,w].
            cond: B prompts (see ``net.Cond``).
            teacher: see ``targets``; no gradient reaches it.
            when: see ``targets``.
            measure: what an error is; the mean of squares if nothing else is asked for.

        Returns:
            The scalar loss, and the plain error of each part, detached.
        """
        goal = self.targets(x1, cond, teacher, when)
        answer = self.reading(net)(goal.x, goal.t, goal.dt, goal.cond)
        wide = torch.promote_types(answer.dtype, torch.float32)
        error = measure(answer.to(wide), goal.y)  # [B]
        plain = error.detach()
        weight = goal.weight
        if self.cfg.loss_power > 0:
            seen = plain if goal.gain is None else plain * goal.gain**2
            weight = weight / (seen + LOSS_OFFSET) ** self.cfg.loss_power  # Geng et al. 2025, section 4.3
        return (weight * error).mean(), {name: plain[rows].mean() for name, rows in goal.parts.items()}

    def times(self, steps: int) -> Tensor:
        """``steps`` regular steps: rising times from 0 to 1, float64 [steps + 1] on the CPU.

        Raises:
            ValueError: ``steps`` is not a positive whole number, or more than this sampler has.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps is {steps!r}, but it must be a positive whole number")
        return torch.arange(steps + 1, dtype=torch.float64) / steps

    def irregular(self, times: Sequence[float] | Tensor) -> Tensor:
        """The user's own times, checked: float64 [n] on the CPU.

        Raises:
            ValueError: they do not rise from 0 to 1.
        """
        grid = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
        values = [round(value, 6) for value in grid.flatten().tolist()]
        if grid.ndim != 1 or len(grid) < 2:
            raise ValueError(f"times is {values}, but it must be a flat list of two or more times, such as [0, 0.5, 1]")
        if not bool(grid.isfinite().all()):
            raise ValueError(f"times is {values}, but every time must be a finite number")
        if grid[0] != 0 or grid[-1] != 1 or bool((grid.diff() <= 0).any()):
            raise ValueError(f"times is {values}, but times must rise strictly from 0 (noise) to 1 (data)")
        return grid

    def scale(self, guidance: float | Tensor, t: float, s: float) -> float | Tensor:
        """Guidance to apply to the network's answers on the way from ``t`` to ``s``."""
        return guidance

    @torch.no_grad()
    def sample(
        self,
        net: Net,
        noise: Tensor,
        cond: Any,
        *,
        steps: int | None = None,
        times: Sequence[float] | Tensor | None = None,
        guidance: float | Tensor = 1.0,
        randn: Randn = torch.randn_like,
    ) -> Tensor:
        """Turn noise into data.

        Args:
            net: trained network.
            noise: standard normal [B,C,h,w]. The caller draws it, so that every mask can have its own seed.
            cond: B prompts (see ``net.Cond``).
            steps: number of regular steps; the config's number where neither this nor ``times`` is given.
            times: irregular steps instead: rising times from 0 to 1.
            guidance: 1 follows the prompt as learned, 0 ignores it; one number or one per row [B].
            randn: source of the noise that stochastic steps add.

        Returns:
            [B,C,h,w], of the dtype of ``noise``.

        Raises:
            ValueError: both or impossible ``steps`` and ``times``.
        """
        if steps is not None and times is not None:
            raise ValueError(f"steps is {steps!r} and times is given too, but only one of them can decide the steps")
        regular = self.cfg.steps if steps is None else steps
        grid = (self.times(regular) if times is None else self.irregular(times)).tolist()
        x, net = noise, self.reading(net)
        for t, s in pairwise(grid):
            x = self.step(Guided(net, self.scale(guidance, t, s)), x, t, s, cond, randn).to(noise.dtype)
        return x
