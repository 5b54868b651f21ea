"""Muon: steps whose directions are all of one length, for the matrices and filters inside a network."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024
SHARE = 0.2  # how far a step moves a weight, of what the learning rate would: as AdamW's do (Liu et al. 2025, eq. 4)
WIDE = 2  # from how many times as many columns as rows on the square of a matrix is iterated in its place


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for groups with ``muon`` True, AdamW for the others.

    A filter is the matrix of its first axis by all else. Its gradients' running mean, with Nesterov's look ahead,
    is replaced by the nearest matrix whose singular values are near 1, scaled to the size of AdamW's steps
    (Liu et al. 2025, arXiv 2502.16982). Weights that are shared out over processes are gathered for that.

    Args:
        groups: of parameters, each with ``lr``, ``weight_decay`` (decoupled) and ``muon``.
        betas: AdamW's decays of the mean gradient and of its square.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._move(group)
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _move(self, group: dict[str, Any]) -> None:
        weights: list[Tensor] = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        for weight in weights:
            if not self.state[weight]:  # AdamW counts the steps of each parameter, and expects that when it is loaded
                self.state[weight].update(step=torch.zeros(()), mean=torch.zeros_like(weight))
        steps, means = ([self.state[weight][name] for weight in weights] for name in ("step", "mean"))
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        keep: Any = 1.0
        bad: Tensor | None = getattr(self, "found_inf", None)  # StepRoutine or the scaler of fp16 says so
        if bad is not None:  # 1: weights and means stay as they are, without asking a GPU first
            keep = 1 - bad
            gradients = [torch.where(bad > 0, mean, gradient) for mean, gradient in zip(means, gradients, strict=True)]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
        ahead = [gradient.lerp(mean, MOMENTUM) for gradient, mean in zip(gradients, means, strict=True)]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"] * keep)
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for weight, step in zip(weights, ahead, strict=True):
            alike.setdefault(weight.shape, []).append((weight, whole(step)))
        for pairs in alike.values():  # all matrices of a shape at once
            made = orthogonal(torch.stack([as_matrix(step) for _, step in pairs])) * keep
            size = group["lr"] * SHARE * math.sqrt(max(made.shape[1:]))
            for (weight, step), matrix in zip(pairs, made, strict=True):
                weight.sub_(shared_as(weight, as_filter(matrix, step)), alpha=size)


def whole(x: Any) -> Tensor:
    gathered: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return gathered


def shared_as(weight: Any, x: Tensor) -> Tensor:
    """``x``, which all processes hold, shared out as ``weight`` is."""
    if not hasattr(weight, "full_tensor"):
        return x
    from torch.distributed.tensor import distribute_tensor  # only there: it takes long to import

    return distribute_tensor(x, weight.device_mesh, weight.placements, src_data_rank=None)


def channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def as_matrix(x: Tensor) -> Tensor:
    """[a,...] -> [a,b], without a copy. Columns are in the order of memory, which does not matter to ``orthogonal``."""
    return (x.permute(0, 2, 3, 1) if channels_last(x) else x).flatten(1)


def as_filter(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse, for a tensor in the memory format of ``like``."""
    if not channels_last(like):
        return matrix.reshape(like.shape)
    out, channels, height, width = like.shape
    return matrix.reshape(out, height, width, channels).permute(0, 3, 1, 2)


def orthogonal(x: Tensor) -> Tensor:
    """[n,a,b] -> for each the nearest matrix whose singular values are near 1 (0.7 to 1.2), but for those near none.

    Five Newton-Schulz iterations of X <- (aI + b XX' + c (XX')^2) X. Of a wide matrix only XX' is iterated, which is
    small: the factors commute, so they are gathered, and X is multiplied with all of them at once. That wants products
    of whole fp32: where they are rounded (TF32), small values below none would grow without bound.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    a, b, c = COEFFICIENTS
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    square, factors = x @ x.mT, None
    if x.shape[2] < WIDE * x.shape[1] or torch.get_float32_matmul_precision() != "highest":
        for left in reversed(range(ITERATIONS)):
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
            square = x @ x.mT if left else square
        return x
    for left in reversed(range(ITERATIONS)):
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        factors = factor if factors is None else factor @ factors
        square = factor @ square @ factor if left else square
    assert factors is not None
    return factors @ x
