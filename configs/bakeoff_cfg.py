"""Comparing trainings: which plan, how long, how often, and how they are judged."""

from dataclasses import dataclass
from typing import Literal

from configs.checks import non_negative, one_of, positive, require
from configs.generate_cfg import check_steps


@dataclass(frozen=True)
class BakeoffCfg:
    """Everything that a comparison of trainings needs."""

    plan: str = "objectives"
    """Which configs to compare: a function of configs/bakeoffs.py."""
    only: tuple[str, ...] = ()
    """Names of the plan to train; none: all of them."""
    out: str = ""
    """Folder; the same command goes on where it was stopped. Empty: runs/bakeoff-PLAN."""
    steps: int = 1500
    """Training steps of the plan's first entrant; the others get as much time, or as many samples."""
    equal: Literal["time", "samples"] = "time"
    """time: steps in inverse proportion to the cost of a step, measured side by side; samples: the same steps."""
    seeds: tuple[int, ...] = (0,)
    """One training each; a table of two or more shows mean and standard deviation."""
    autoencoder: str = ""
    """Stage-1 checkpoint, or model whose stage 1 is taken, for all; empty: the bakeoff trains the stage 1 that each
    entrant names, once."""
    workers: int = 1
    """Trainings at the same time."""
    threads: int = 0
    """CPU threads of each training (0: torch decides)."""
    eval_steps: tuple[int, ...] = (1, 4, 32)
    """Step counts to judge."""
    num: int = 0
    """Masks per step count (0: as many as are held out)."""
    features: Literal["auto", "imagenet"] = "auto"
    """What sets are compared in: the classifier, or where prompts are no classes each entrant's own stage-1 encoder;
    imagenet: EfficientNet-Lite0, the same for all stages 1."""
    search: int = 1000
    """Masks whose nearest training mask is looked for, to see copies (0: none)."""

    def __post_init__(self) -> None:
        for name in ("steps", "workers"):
            positive(name, getattr(self, name))
        for name in ("threads", "num", "search"):
            non_negative(name, getattr(self, name))
        one_of("equal", self.equal, ("time", "samples"))
        one_of("features", self.features, ("auto", "imagenet"))
        require(len(self.seeds) > 0, "seeds", self.seeds, "one or more numbers, such as 0 1 2")
        require(self.num != 1, "num", self.num, "0 (as many as are held out) or at least 2")
        require(len(self.eval_steps) > 0, "eval_steps", self.eval_steps, "one or more numbers, such as 1 4 32")
        check_steps(self.eval_steps)
