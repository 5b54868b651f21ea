"""Objectives whose network answers the average velocity over any step: rows, guidance, and the two-part target."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from configs.sampler_cfg import FlowMapCfg
from samplers.base import START, Targets, When
from samplers.flow import FlowMatching, interpolate
from samplers.guidance import Asked, Guidance, Guided, RowGuided, mix
from samplers.net import Net, beside, spread, time_dtype

SHORTEST_LOG_JUMP = 1 / 64
END_SLACK = 1e-6
MANY = 32
"""Rows of the one-step query, from which on their number is rounded alike in every batch: then as many rows are left
where equal ones are one, and a recording (models/cuda_graphs.py) of that shape does for all."""
Step = TypeVar("Step", float, Tensor)


@dataclass(frozen=True)
class Jumps:
    """Rows that learn self-consistency: what the average velocity from ``x_t`` over ``dt`` is asked for."""

    x_t: Tensor  # [B,C,h,w]
    t: Tensor  # [B] float64 on the CPU, where steps that stand for the velocity are found without waiting for a device
    dt: Tensor  # [B] likewise; t + dt <= 1
    velocity: Tensor  # [B,C,h,w] x1 - noise
    cond: Any  # B rows; carries the guidance where that is an input
    guidance: float | Tensor  # of the targets: one number, or one per row [B]
    counts: Tensor | None = None  # [B] on the CPU: how many equal rows each of these stands for; None: one


class FlowMap(FlowMatching):
    """Flow rows learn the velocity at ``dt = 0``; consistency rows learn ``average_velocity`` over ``dt > 0``.

    Rows at dt = 0 never hold guidance; rows at dt > 0 inherit the guidance with which targets ask for the velocity.
    """

    answers: ClassVar[str] = "the average velocity over any step dt on the straight path x_t = (1 - t) noise + t mask"
    cfg: FlowMapCfg

    def __init__(self, cfg: FlowMapCfg) -> None:
        super().__init__(cfg)
        self.velocity_guidance = cfg.train_guidance

    @abstractmethod
    def average_velocity(self, jumps: Jumps, teacher: Net, when: When) -> Tensor:
        """The target of each row: [B,C,h,w]."""

    def gain(self, jumps: Jumps, when: When) -> float:
        """By how much the loss magnifies the difference from the target; 1 for most."""
        return 1.0

    def query(self, step: float) -> float:
        return step

    def guided(self, net: Net, guidance: Guidance, t: float, s: float) -> Net:
        if self.cfg.most_guidance == 0 or self.query(s - t) == 0:
            return super().guided(net, guidance, t, s)
        if guidance.negative is not None:
            return Guided(Asked(net, self.cfg.train_guidance), guidance.at(t), negative=guidance.negative)
        # A guidance of 1 is the one that networks without this input hold; beyond the trained range, extrapolate.
        scale = self.cfg.train_guidance * guidance.at(t)
        least, most = (scale.min(), scale.max()) if isinstance(scale, Tensor) else (scale, scale)
        trained = bool(least >= 1) and bool(most <= self.cfg.most_guidance)
        return Asked(net, scale) if trained else Guided(net, scale)

    def targets(self, x1: Tensor, cond: Any, teacher: Net, when: When = START) -> Targets:
        if len(x1) == 1:  # one row serves both ends, since either alone would never train the other
            x1, cond = x1.repeat(2, *[1] * (x1.ndim - 1)), cond.repeat(2)
        return super().targets(x1, cond, teacher, when)

    def asks_teacher(self, when: When) -> bool:
        # Small teacher batches cost nearly as much as larger ones, so the rows of ``every`` steps are drawn at once.
        return when.step % self.cfg.every == 0 and when.progress >= self.cfg.begin

    def draw(self, x1: Tensor, cond: Any, teacher: Net, when: When) -> Targets:
        if not self.asks_teacher(when):
            goal = super().draw(x1, cond, teacher, when)
            return goal if self.cfg.flow_power is None else replace(goal, power=self.powers(goal.t, 0))
        batch, share = len(x1), self.cfg.share * self.cfg.every
        rows = min(max(1, round(share * batch)), batch - 1)
        noise = self.noise_for(x1, cond)
        jumps, u, parts = self.consistency(x1[:rows], noise[:rows], cond[:rows], teacher, when)
        gain = self.gain(jumps, when)
        x_flow, t_flow, velocity = self.flow_rows(x1[rows:], noise[rows:], cond[rows:])
        t, dt = (beside(value.to(t_flow.dtype), x1) for value in (jumps.t, jumps.dt))
        # Whatever the rounding of ``rows``, this loss is share * mean(consistency) + (1 - share) * mean(flow).
        on_consistency = self.cfg.consistency_weight * gain * share * batch / rows
        on_flow = (1 - share) * batch / (batch - rows)
        learned = len(u)  # fewer than ``rows`` where some stand for several
        counts = None if jumps.counts is None else beside(jumps.counts.to(t_flow.dtype), x1)
        return self.capped(Targets(
            x=torch.cat([jumps.x_t, x_flow]),
            t=torch.cat([t, t_flow]),
            dt=torch.cat([dt, torch.zeros_like(t_flow)]),
            cond=jumps.cond.concat(cond[rows:] if self.cfg.most_guidance == 0 else cond[rows:].guided(1.0)),
            y=torch.cat([u.to(x1.dtype), velocity]),
            weight=torch.cat([torch.full_like(t, on_consistency), torch.full_like(t_flow, on_flow)]),
            parts={**parts, "flow": slice(learned, learned + batch - rows)},
            ends=self.ends(jumps, x1),
            end_weight=self.cfg.perceptual_weight,
            gain=None if gain == 1 else torch.cat([torch.full_like(t, gain), torch.ones_like(t_flow)]),
            power=None if self.cfg.flow_power is None else self.powers(torch.cat([t, t_flow]), learned),
            counts=None if counts is None else torch.cat([counts, torch.ones_like(t_flow)]),
        ))

    def consistency(
        self, x1: Tensor, noise: Tensor, cond: Any, teacher: Net, when: When
    ) -> tuple[Jumps, Tensor, dict[str, slice]]:
        """Consistency rows, their targets [B,C,h,w], and the rows of each step length that are reported apart."""
        jumps, parts = self.jumps(x1, noise, cond, when)
        return jumps, self.average_velocity(jumps, teacher, when), parts

    def ends(self, jumps: Jumps, x: Tensor) -> Tensor | None:
        """Rows whose step reaches the end of the path, where the loss is to look at what was reached."""
        if self.cfg.perceptual_weight == 0:
            return None
        return beside((jumps.t + jumps.dt > 1 - END_SLACK).nonzero().flatten(), x)

    def powers(self, like: Tensor, rows: int) -> Tensor:
        """[B] power of the adaptive weight where the first ``rows`` rows are consistency rows."""
        power = torch.full_like(like, self.cfg.flow_power or 0.0)
        power[:rows] = self.cfg.loss_power
        return power

    def jumps(self, x1: Tensor, noise: Tensor, cond: Any, when: When) -> tuple[Jumps, dict[str, slice]]:
        """Consistency rows, and the rows of each step length that are reported apart."""
        t, dt, parts = self.lengths(len(x1), when)
        guidance, cond = self.strengths(x1, cond)
        x_t = interpolate(noise, x1, beside(t.to(time_dtype(x1)), x1))
        return Jumps(x_t, t, dt, x1 - noise, cond, guidance), parts

    def strengths(self, x: Tensor, cond: Any) -> tuple[float | Tensor, Any]:
        """Guidance of the targets for the rows of ``x``, and their prompts, which carry it where it is an input."""
        if self.cfg.most_guidance == 0:
            return self.cfg.train_guidance, cond
        scale = 1 + (self.cfg.most_guidance - 1) * torch.rand(len(x), dtype=time_dtype(x), device=x.device)
        return scale, cond.guided(scale)

    def lengths(self, rows: int, when: When) -> tuple[Tensor, Tensor, dict[str, slice]]:
        """Times and steps: float64 [rows] on the CPU.

        Without an atom the one-step query (0, 1) would be a corner that no draw ever hits.
        """
        wanted = self.cfg.one_step_atom * rows
        ones = math.floor(wanted + (float(torch.rand(())) if wanted < MANY else 0.5))  # few are right on average
        rest = rows - ones
        if self.cfg.jumps == "two-times":
            pair = self.flow_times(torch.empty(2, rest, dtype=torch.float64)).sort(0).values
            t, dt = pair[0], pair[1] - pair[0]
        elif self.cfg.jumps == "log":
            dt = SHORTEST_LOG_JUMP ** torch.rand(rest, dtype=torch.float64)
            t = torch.rand_like(dt) * (1 - dt)
        else:
            t = torch.rand(rest, dtype=torch.float64)
            dt = torch.rand_like(t) * (1 - t)
        reach = self.reach(when)
        t, dt = torch.cat([t.new_zeros(ones), t]), reach * torch.cat([t.new_ones(ones), dt])
        parts = {"consistency": slice(0, rows)}
        if wanted >= 1 and reach == 1:
            parts["consistency_d1"] = slice(0, ones)
        return t, dt, parts

    def reach(self, when: When) -> float:
        """Longest step so far, above 0 and at most 1: it grows over the curriculum's share of the training."""
        if self.cfg.curriculum == 0:
            return 1.0
        return min(1.0, max(when.progress / self.cfg.curriculum, SHORTEST_LOG_JUMP))

    def ask(self, teacher: Net, x: Tensor, t: Tensor, dt: Tensor, jumps: Jumps) -> Tensor:
        """The teacher's answers [B,C,h,w] for ``t`` and ``dt`` (float64 [B] on the CPU), guided where dt is 0."""
        velocities = (dt == 0).nonzero().flatten()
        t, dt = (beside(value.to(time_dtype(x)), x) for value in (t, dt))
        guided = RowGuided(teacher, jumps.guidance, beside(velocities, x))
        return guided(x, t, dt, jumps.cond).to(x.dtype)

    def guided_velocity(self, teacher: Net, jumps: Jumps, data: float) -> Tensor:
        """Velocity [B,C,h,w] at ``x_t`` with the guidance of the targets; ``data`` of it is x1 - noise itself.

        Its mean over the data is the guided velocity for any ``data``; SoFlow (2512.15657) mixes both for less noise.
        """
        x, guidance = jumps.x_t, jumps.guidance
        if data == 1 and not isinstance(guidance, Tensor) and guidance == 1:
            return jumps.velocity
        t = beside(jumps.t.to(time_dtype(x)), x)
        dt = torch.zeros_like(t)
        if isinstance(guidance, Tensor) or guidance != 1:
            cond = jumps.cond.guided(1.0) if isinstance(guidance, Tensor) else jumps.cond
            u_cond, u_null = Guided(teacher, guidance).halves(x, t, dt, cond)
            held = mix(u_cond, u_null, guidance)
        else:
            held = u_cond = teacher(x, t, dt, jumps.cond)
        return (held + data * (jumps.velocity - u_cond)).to(x.dtype)


def or_velocity(step: Step, grid: int) -> Step:
    """The ``dt`` to ask for a step: 0 up to 1/grid, which the flow rows train; longer ones as they are."""
    return step * (step > (1 + 1e-6) / grid)


def two_part(x_t: Tensor, dt: Tensor, part: Tensor, first: Tensor, second: Callable[[Tensor], Tensor]) -> Tensor:
    """Average velocity over ``dt`` [B] from two parts of it: [B,C,h,w].

    Args:
        x_t: where the step starts [B,C,h,w].
        dt: length of the whole step [B].
        part: share of the step that the first part takes [B].
        first: average velocity of the first part [B,C,h,w].
        second: from where the first part ends [B,C,h,w], the average velocity of the second part.

    Shortcut, SplitMeanFlow, SoFlow and alpha-Flow differ only in ``part`` and ``first`` (2510.20771, section 4).
    """
    near = spread(part, x_t)
    return near * first + (1 - near) * second(x_t + spread(part * dt, x_t) * first)
