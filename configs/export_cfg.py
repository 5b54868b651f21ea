"""Exporting a model: which checkpoint, where to, in which precision."""

from dataclasses import dataclass
from typing import Literal

from configs.checks import fraction, one_of, positive, require


@dataclass(frozen=True)
class ExportCfg:
    """Everything that an export needs."""

    checkpoint: str
    """Stage 2's checkpoint; or an export, or icons, icons256, animals or geometry, which come with the project."""
    format: Literal["safetensors", "onnx", "pt2"] = "safetensors"
    """safetensors: weights and config, for this project. onnx or pt2 (torch.export): text projection, network steps and
    decoder as a graph for any program, checked against the model and timed beside it."""
    steps: int = 1
    """Network steps of a graph."""
    out: str = ""
    """The file to write, and a .json beside it; empty: model.FORMAT beside the checkpoint (runs for our own)."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of the weights of safetensors; bf16 takes half the space. Graphs are in fp32."""
    blend: str = ""
    """A second model of the same network and stage 1, such as that of init: the weights are means of both, which here
    kept most of what a critic gained and half of the variety that it cost (docs/results.md)."""
    share: float = 0.5
    """How much of these means is the second model's."""
    overwrite: bool = False
    """Replace files that are already there."""

    def __post_init__(self) -> None:
        require(bool(self.checkpoint.strip()), "checkpoint", self.checkpoint, "the path of a stage-2 checkpoint")
        one_of("format", self.format, ("safetensors", "onnx", "pt2"))
        positive("steps", self.steps)
        require(self.steps == 1 or self.format != "safetensors", "steps", self.steps,
                "1 in format safetensors, whose weights take any number of steps later; onnx and pt2 hold theirs")
        ending = f".{self.format}"
        require(not self.out or self.out.endswith(ending), "out", self.out, f"a file that ends in {ending}")
        one_of("dtype", self.dtype, ("bf16", "fp32"))
        fraction("share", self.share)
        require(self.share > 0, "share", self.share, "above 0: none of the second model would change nothing")
        require(bool(self.blend) or self.share == 0.5, "share", self.share, "left out where no second model is named")
        require(not self.blend or self.blend.strip() != "", "blend", self.blend, "the path of a stage-2 checkpoint")
        require(not self.blend or self.format == "safetensors", "blend", self.blend,
                "empty for a graph: blend first, and write the graph of what you get")
