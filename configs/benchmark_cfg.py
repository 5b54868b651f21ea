"""Measuring: which parts, how thoroughly, and where the numbers go."""

import math
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from configs.checks import non_negative, require
from configs.presets import STAGE_1, STAGE_2

PARTS = (
    "layers", "precision", "objectives", "pipeline", "graphs", "data", "pixels", "generation", "rivals", "memory",
    "startup",
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkCfg:
    """What is measured."""

    preset: Positional[str] = "animals-tiny"
    """Preset whose network, objective and data are measured."""
    only: tuple[str, ...] = ()
    """Parts to measure, of layers, precision, objectives, pipeline, graphs, data, pixels, generation, rivals, memory,
    startup; none: all of them."""
    quick: bool = False
    """Fewer repeats and masks: under 10 minutes on two cores."""
    repeats: int = 0
    """Interleaved repeats of each comparison (0: 15, or when quick 5, but 3 where these take more than 10 seconds)."""
    json: str = ""
    """File for the numbers, as one flat JSON object; the keys of ratios end in _ratio."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """What to measure on; auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        both = [name for name in STAGE_1 if not STAGE_2[name]().init]
        require(self.preset in both, "preset", self.preset, f"one with both stages: {', '.join(both)}")
        for part in self.only:
            require(part in PARTS, "only", part, f"one of {', '.join(PARTS)}")
        non_negative("repeats", self.repeats)

    @property
    def rounds(self) -> int:
        """Interleaved repeats of each comparison, at most."""
        return self.repeats or (5 if self.quick else 15)

    @property
    def seconds(self) -> float:
        """After as many, a comparison has no more than three repeats."""
        return 10.0 if self.quick and not self.repeats else math.inf
