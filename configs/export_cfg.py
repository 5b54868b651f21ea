"""Exporting a model: which checkpoint, where to, in which precision."""

from dataclasses import dataclass
from typing import Literal

from configs.checks import one_of, require


@dataclass(frozen=True)
class ExportCfg:
    """Everything that an export needs."""

    checkpoint: str
    """Stage 2's checkpoint."""
    out: str = ""
    """The .safetensors file to write, a .json file beside it; empty: model.safetensors beside the checkpoint."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of the weights; bf16 takes half the space."""
    overwrite: bool = False
    """Replace files that are already there."""

    def __post_init__(self) -> None:
        require(bool(self.checkpoint.strip()), "checkpoint", self.checkpoint, "the path of a stage-2 checkpoint")
        require(not self.out or self.out.endswith(".safetensors"), "out", self.out, "a file that ends in .safetensors")
        one_of("dtype", self.dtype, ("bf16", "fp32"))
