"""What lies between two prompts, and between two draws of noise."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.net import Net, spread


@dataclass(frozen=True)
class Between:
    """A batch of prompts that stand between ``first`` and ``second``; see ``Mixed`` for what that means."""

    first: Any  # B rows
    second: Any  # B rows
    weight: Tensor  # [B] 0: first, 1: second

    def both(self, change: Callable[[Any], Any], weight: Tensor | None = None) -> "Between":
        return Between(change(self.first), change(self.second), self.weight if weight is None else weight)

    def drop(self, rows: Tensor) -> "Between":
        return self.both(lambda cond: cond.drop(rows))

    def repeat(self, n: int) -> "Between":
        return self.both(lambda cond: cond.repeat(n), self.weight.repeat(n))

    def guided(self, w: float | Tensor) -> "Between":
        return self.both(lambda cond: cond.guided(w))

    def same(self) -> Tensor:
        return self.first.same() & self.second.same() & (self.weight[:, None] == self.weight)

    def __getitem__(self, rows: slice | Tensor) -> "Between":
        return self.both(lambda cond: cond[rows], self.weight[rows])

    def concat(self, other: Any) -> "Between":
        """These rows, then the other's, which may be plain prompts."""
        rest = other if isinstance(other, Between) else Between(other, other, torch.zeros_like(self.weight))
        weight = torch.cat([self.weight, rest.weight])
        return Between(self.first.concat(rest.first), self.second.concat(rest.second), weight)


@dataclass(frozen=True)
class Mixed:
    """A network that answers ``(1 - weight) u(first) + weight u(second)`` for prompts between two.

    Both are asked in one call. The average of velocities is the velocity of composed prompts (Liu et al. 2022, arXiv
    2206.01714, section 3, with weights that sum to 1); features of prompts of other lengths have no average.
    """

    net: Net

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Any) -> Tensor:  # x [B,C,h,w], t [B], dt [B]
        if not isinstance(cond, Between):
            return self.net(x, t, dt, cond)
        twice = cond.first.concat(cond.second)
        first, second = self.net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([dt, dt]), twice).chunk(2)
        return torch.lerp(first, second, spread(cond.weight, first))


def noise_between(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """The point at ``weight`` [B] of a quarter of a circle from one draw of noise to another, [B,...] each.

    ``cos(a) first + sin(a) second`` with ``a = weight pi / 2`` is standard normal for every weight if the draws are
    independent, since the squares add up to 1: the spherical interpolation of Song et al. (2021, arXiv 2010.02502,
    section 5.3), at the angle that such draws have on average.
    """
    angles = [(math.cos(w * math.pi / 2), math.sin(w * math.pi / 2)) for w in weight.tolist()]
    cos, sin = (spread(torch.tensor(part, dtype=torch.float64), first) for part in zip(*angles, strict=True))
    mixed = cos * first + sin * second
    near, far = (spread(weight == end, first).bool() for end in (0, 1))  # cos(pi / 2) is not quite 0
    return torch.where(near, first, torch.where(far, second, mixed))
