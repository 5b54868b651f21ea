"""Judging a stage-2 checkpoint: how many masks, in how many steps, how often."""

from dataclasses import dataclass
from typing import Literal

from configs.checks import non_negative, one_of, positive, require
from configs.generate_cfg import check_steps
from configs.sampling_cfg import SamplingCfg


@dataclass(frozen=True)
class EvaluateCfg(SamplingCfg):
    """Everything that an evaluation needs."""

    checkpoint: str
    """Stage 2's checkpoint or export, or icons, icons256, animals or geometry, which come with the project; it names
    its own data (those of icons256: tests/icons256.py)."""
    num: int = 0
    """Masks per step count and seed (0: as many as the held-out split has)."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 32, 128)
    """Step counts to judge, with the same noise for each of them."""
    seeds: int = 1
    """Repetitions with other noise and other draws; with 2 or more the table shows mean and standard deviation."""
    seed: int = 0
    """Seed of the first repetition and of the classifier."""
    sketches: bool = False
    """Show the network, beside each prompt, a sketch made of the held-out mask that the prompt is of, and report the
    IoU with that mask; for models that read sketches. The row of real masks has the IoU of the sketches themselves."""
    tries: int = 1
    """Masks drawn for a prompt that is a caption of geometry until one is what it says (see generate_masks)."""
    classifier: str = ""
    """File of the classifier: read if it exists, else written after training; empty: train one and forget it."""
    classifier_steps: int = 1000
    """Training steps of the classifier."""
    features: Literal["auto", "imagenet", "inception"] = "auto"
    """What sets are compared in: the classifier (or stage-1 encoder), EfficientNet-Lite0, or FID's Inception."""
    inception: str = ""
    """Weight file of FID's Inception network, for features inception; nothing is downloaded."""
    search: int = 1000
    """Masks of each set whose nearest training mask is looked for, to see copies (0: none)."""
    out: str = ""
    """Where the report goes, a figure beside it; empty: evaluation.json beside the checkpoint."""
    batch_size: int = 128
    """Masks per network call."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """What to run on; auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.checkpoint.strip()), "checkpoint", self.checkpoint, "the path of a stage-2 checkpoint")
        require(self.num == 0 or self.num >= 2, "num", self.num, "0 (as many as are held out) or at least 2")
        require(len(self.steps) > 0, "steps", self.steps, "one or more numbers, such as 1 4 32")
        check_steps(self.steps)
        for name in ("seeds", "tries", "classifier_steps", "batch_size"):
            positive(name, getattr(self, name))
        one_of("features", self.features, ("auto", "imagenet", "inception"))
        require(self.features != "inception" or bool(self.inception), "inception", self.inception,
                "the weight file, when features is inception")
        require(self.features == "inception" or not self.inception, "inception", self.inception,
                "empty unless features is inception")
        require(not self.sketches or self.tries == 1, "tries", self.tries, "1 where sketches are shown")
        non_negative("search", self.search)
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
