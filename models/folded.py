"""Layers that compute with filters folded from their weights: at each call, or once where the weights stay."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Filters = TypeVar("Filters")


class Folded(nn.Module):
    """A layer that gets its filters from :meth:`folded`."""

    kept: dict[Hashable, Any] | None = None
    """What was folded so far; None: nothing is kept (``keep_folded`` turns that on)."""

    def folded(self, x: Tensor, fold: Callable[[], Filters]) -> Filters:
        """The filters that ``fold`` makes for inputs like x [B,C,H,W], where they are kept once for all of them."""
        if self.kept is None or torch.compiler.is_compiling():  # a graph holds the weights themselves
            return fold()
        kind = x.device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        like = (x.shape[1:], x.is_contiguous(), cast)
        if like not in self.kept:
            with torch.inference_mode(False), torch.no_grad():  # what is kept may be used outside of inference mode
                self.kept[like] = fold()
        filters: Filters = self.kept[like]
        return filters

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        if self.kept is not None:
            self.kept = {}  # the weights go to another device, number format or memory format
        return super()._apply(*args, **kwargs)


def keep_folded(module: nn.Module) -> None:
    """Have the layers of ``module`` fold their filters once, since its weights are not going to change."""
    for layer in module.modules():
        if isinstance(layer, Folded):
            layer.kept = {}


@contextmanager
def folded_once(module: nn.Module) -> Iterator[None]:
    """Within, layers on a CPU fold their filters at the first call only: the weights must stay as they are.

    Elsewhere nothing is kept, since a call may be recorded there, its folding with it (models/cuda_graphs.py).
    """
    on_cpu = next(module.parameters()).device.type == "cpu"
    layers = [layer for layer in module.modules() if isinstance(layer, Folded) and layer.kept is None and on_cpu]
    for layer in layers:
        layer.kept = {}
    try:
        yield
    finally:
        for layer in layers:
            layer.kept = None
