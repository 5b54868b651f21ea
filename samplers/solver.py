"""What a solver is: how to move from noise to data with a trained network, and the one loop around its steps.

Time runs from 0 (noise) to 1 (data) in every solver; ``dt`` is the step that the network is asked to take, 0 meaning
the instantaneous velocity.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from configs.sampler_cfg import SamplerCfg
from samplers.between import Mixed
from samplers.bridge import Path, Straight
from samplers.guidance import Guidance, Guided
from samplers.known import Hold, Known, free
from samplers.net import Net, Randn

S = TypeVar("S", bound="Solver")


class HasSteps(Protocol):
    """The config of a solver."""

    @property
    def steps(self) -> int: ...


class Solver(ABC):
    """Steps from noise to data; it has no parameters and keeps nothing between calls."""

    name: ClassVar[str]
    """What users call it."""
    drives: ClassVar[type[SamplerCfg] | tuple[type[SamplerCfg], ...]]
    """Networks trained under such a config, or one derived from it, understand this solver's questions."""
    answers: ClassVar[str]
    """What the network has to answer, as half a sentence."""
    path: Path = Straight()
    """Where the network was trained."""
    velocity_guidance: float = 1.0
    """Guidance that the network holds at dt > 0 and lacks at dt = 0."""
    learned: "Solver | None" = None
    """What has trained the network; None: this sampler itself."""
    cfg: HasSteps

    def __init__(self, cfg: HasSteps) -> None:
        self.cfg = cfg

    @classmethod
    def driving(cls: type[S], learned: "Solver", cfg: HasSteps) -> S:
        """This solver with the settings ``cfg``, for the network that ``learned`` has trained."""
        solver = cls(cfg)
        solver.path = learned.path
        solver.velocity_guidance = learned.velocity_guidance
        solver.learned = learned
        return solver

    def reading(self, net: Net) -> Net:
        """The network's answers as its training means them; most are taken as they are."""
        return net if self.learned is None else self.learned.reading(net)

    @abstractmethod
    def step(self, net: Net, x: Tensor, t: float, s: float, cond: Any, randn: Randn) -> Tensor:
        """Move ``x`` [B,C,h,w] from time ``t`` to the later time ``s``."""

    def query(self, step: float) -> float:
        """The ``dt`` that stands for a step of this length."""
        return 0.0

    def scale(self, guidance: float | Tensor, t: float, s: float) -> float | Tensor:
        """Guidance to apply to the network's answers on the way from ``t`` to ``s``."""
        # A net trained with guidance w answers u_w = u_null + w (u_cond - u_null) for prompts at dt > 0, so that
        # u_null + g (u_w - u_null) = u_null + g w (u_cond - u_null): at dt = 0 the factor w has to be put in here.
        return guidance * self.velocity_guidance if self.query(s - t) == 0 else guidance

    def guided(self, net: Net, guidance: Guidance, t: float, s: float) -> Net:
        """The network to ask on the way from ``t`` to ``s``."""
        if guidance.negative is not None:  # the guidance that answers hold at dt > 0 leads away from no prompt
            held = Guided(net, self.scale(1.0, t, s))
            return Guided(held, guidance.at(t), guidance.cfg_zero, guidance.negative)
        return Guided(net, self.scale(guidance.at(t), t, s), guidance.cfg_zero)

    def walk(
        self, net: Net, x: Tensor, grid: list[float], cond: Any, guidance: Guidance, randn: Randn, hold: Hold = free
    ) -> Tensor:
        """All steps through the times ``grid``; multi-step solvers replace it, with their history in its variables."""
        for t, s in pairwise(grid):
            x = hold(self.step(self.guided(net, guidance, t, s), x, t, s, cond, randn).to(x.dtype), s)
        return x

    def grid(
        self, steps: int | None, times: Sequence[float] | Tensor | None = None, shift: float = 1.0, start: float = 0.0
    ) -> Tensor:
        """The times of a sampling (see ``sample``), squeezed into what is left after ``start``: float64 [n] on the CPU.

        Raises:
            ValueError: both or impossible steps and times, or steps that are too short for a training chain.
        """
        if times is not None and (steps is not None or shift != 1):
            other = f"steps is {steps!r}" if steps is not None else f"shift is {shift!r}"
            raise ValueError(f"{other} and times is given too, but only one of them can decide the steps")
        regular = self.cfg.steps if steps is None else steps
        whole = self.times(regular, shift) if times is None else self.irregular(times)
        if start == 0:
            return whole
        try:
            return self.path.place(start + (1 - start) * whole)
        except ValueError as error:
            raise ValueError(f"{len(whole) - 1} steps are too many from time {start:g} on: {error}") from None

    def times(self, steps: int, shift: float = 1.0) -> Tensor:
        """``steps`` regular steps, shifted: rising times from 0 to 1, float64 [steps + 1] on the CPU.

        Args:
            steps: a positive whole number.
            shift: above 1, more of the steps lie near the noise (Esser et al. 2024, eq. 23); 1: none.

        Raises:
            ValueError: an impossible number or shift, or more steps than the network has times for.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps is {steps!r}, but it must be a positive whole number")
        if not (math.isfinite(shift) and shift > 0):
            raise ValueError(f"shift is {shift!r}, but it must be a positive number (1: none)")
        if steps > self.path.most_steps:
            most = f"at most {self.path.most_steps}, {self.path.why_no_more}"
            raise ValueError(f"steps is {steps}, but it must be {most}")
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        # With sigma = 1 - t this is sigma' = shift sigma / (1 + (shift - 1) sigma).
        shifted = t if shift == 1 else t / (t + shift * (1 - t))
        if bool((shifted.diff() <= 0).any()):
            raise ValueError(f"shift is {shift:g} with {steps} steps, so that some of them have no length")
        try:
            return self.path.place(shifted)
        except ValueError as error:
            raise ValueError(f"shift is {shift:g} with {steps} steps, so that {error}") from None

    def irregular(self, times: Sequence[float] | Tensor) -> Tensor:
        """The user's own times, checked: float64 [n] on the CPU.

        Raises:
            ValueError: they do not rise from 0 to 1, or two of them fall on one step of a training chain.
        """
        grid = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
        values = [round(value, 6) for value in grid.flatten().tolist()]
        if grid.ndim != 1 or len(grid) < 2:
            raise ValueError(f"times is {values}, but it must be a flat list of two or more times, such as [0, 0.5, 1]")
        if not bool(grid.isfinite().all()):
            raise ValueError(f"times is {values}, but every time must be a finite number")
        if grid[0] != 0 or grid[-1] != 1 or bool((grid.diff() <= 0).any()):
            raise ValueError(f"times is {values}, but times must rise strictly from 0 (noise) to 1 (data)")
        return self.path.place(grid)

    def check(self, guidance: Guidance) -> None:
        """Raise ``ValueError`` for guidance that this solver cannot apply."""
        straight = isinstance(self.path, Straight)
        if (guidance.cfg_zero or guidance.zero_init > 0) and not (straight and self.query(1.0) == 0):
            chosen = "cfg_zero" if guidance.cfg_zero else "zero_init"
            raise ValueError(
                f"{chosen} is on, but it corrects {Straight.answers}, and {self.name} asks here for "
                f"{self.answers}: turn it off{', or take the sampler flow, heun or dpmpp' if straight else ''}"
            )

    @torch.no_grad()
    def sample(
        self,
        net: Net,
        noise: Tensor,
        cond: Any,
        *,
        steps: int | None = None,
        times: Sequence[float] | Tensor | None = None,
        shift: float = 1.0,
        guidance: float | Tensor | Guidance = 1.0,
        randn: Randn = torch.randn_like,
        known: Known | None = None,
    ) -> Tensor:
        """Turn noise into data.

        Args:
            net: trained network.
            noise: standard normal [B,C,h,w]. The caller draws it, so that every mask can have its own seed.
            cond: B prompts (see ``net.Cond``), or what lies between two of them (``Between``).
            steps: number of regular steps; the config's number where neither this nor ``times`` is given.
            times: irregular steps instead: rising times from 0 to 1.
            shift: see ``times``; regular steps only.
            guidance: 1 follows the prompt as learned, 0 ignores it; one number, one per row [B], or all its options.
            randn: source of the noise that stochastic steps add.
            known: data to start from or to keep; all steps are then taken in what is left of the time.

        Returns:
            [B,C,h,w], of the dtype of ``noise``.

        Raises:
            ValueError: both or impossible ``steps`` and ``times``, or guidance that this solver cannot apply.
        """
        options = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        grid = self.grid(steps, times, shift, known.start if known else 0.0).tolist()
        self.check(options)
        x, hold = (noise, free) if known is None else known.begin(self.path, noise, grid[0])
        # A velocity of zero leaves the noise as it is, so the first steps to the time where it ends are left out.
        grid = grid[options.still_steps(len(grid) - 1) :]
        return self.walk(Mixed(self.reading(net)), x, grid, cond, options, randn, hold)
