"""Generating masks: which checkpoint, which prompts, how many, in how many steps, and where they go."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from tyro.conf import UseAppendAction

from configs.checks import ConfigError, non_negative, positive, require
from configs.sampling_cfg import SamplingCfg


@dataclass(frozen=True)
class GenerateCfg(SamplingCfg):
    """Everything that a generation needs."""

    checkpoint: str = "icons"
    """A model that comes with the project (icons: anything, 64 px; icons256: the same, 256 px; animals: ten of them,
    32 px; geometry: prompts such as "two small round blobs, left", 64 px), or the path of a stage-2 checkpoint or
    export."""
    prompt: Annotated[tuple[str, ...], UseAppendAction] = ()
    """What to draw; give it several times for several prompts ("" asks for nothing in particular)."""
    prompts_file: str = ""
    """Text file with one prompt per line, drawn after those of --prompt."""
    num: int = 16
    """Masks per prompt and step count."""
    steps: tuple[int, ...] = ()
    """Network steps, such as 1, or 1 4 32 for the same masks in each of them; none: the sampler's own number."""
    times: str = ""
    """Irregular steps instead: rising times from 0 (noise) to 1 (mask), such as 0,0.3,0.5,1."""
    seed: int = 0
    """Mask k of every prompt has the seed SEED + k: alone, it decides the mask, at any batch size."""
    tries: int = 0
    """Where a prompt is a caption of geometry ("two small round blobs, top"), draw a mask that is something else anew,
    up to so many times in all, and keep the one with most of its words right. 0: 16 for such prompts."""
    negative_prompt: str = ""
    """What the masks should not be: guidance (which must be above 1) leads away from it, not from no prompt."""
    to_prompt: str | None = None
    """The NUM masks of a prompt then lead from it to this one in equal parts, all from the same seed; it is the text of
    those that are nearer to it."""
    to_seed: int | None = None
    """Likewise from the noise of SEED to that of this seed."""
    init_mask: str = ""
    """Image file of a mask to start from: variations of it, or inpainting with --keep."""
    strength: float = 0.8
    """How much of INIT_MASK is drawn anew: near 0 hardly anything, 1 all of it (it then matters to --keep alone)."""
    keep: str = ""
    """The region of INIT_MASK that stays as it is: a mask file of the same size (white stays), or a box of its pixels,
    left,top,right,bottom, such as 0,0,32,64."""
    sketch: str = ""
    """Image file of a sketch that the masks should follow, beside the prompt: bright lines or shapes on black, or dark
    ones on white. For models that read sketches, such as icons."""
    threshold: float = 0.5
    """Probability above which a pixel is foreground."""
    out: str = ""
    """Folder to write to; empty: a new one, masks-1, masks-2 ..., beside the checkpoint (runs for our own)."""
    overwrite: bool = False
    """Write into a folder that is not empty; the files of its earlier manifest are removed first."""
    resume: bool = False
    """Go on with a generation of the same settings that was stopped: files of OUT that are there are kept."""
    imagefolder: bool = False
    """Write metadata.jsonl too, so that Hugging Face's load_dataset("imagefolder", data_dir=OUT) reads the folder."""
    one_bit: bool = False
    """1-bit PNG files instead of 8-bit files with 0 and 255."""
    enlarge: int = 1
    """Write masks of so many times the model's height and width, with smooth outlines: 256 pixels of a model of 64 with
    4. That adds no detail; shrunk again, they are the masks of 1."""
    svg: bool = False
    """Write an SVG file beside each PNG, too: the smooth outline as a path."""
    size: int = 0
    """Height and width in pixels of one mask in the picture grid.png; 0: its own, but from 64 to 128."""
    batch_size: int = 64
    """Masks per network call; it changes speed and memory, never a file."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """What to run on; auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.checkpoint.strip()), "checkpoint", self.checkpoint, "the path of a stage-2 checkpoint")
        if not self.prompt and not self.prompts_file:
            raise ConfigError('nothing to draw: give --prompt "a giraffe" (once or more often) or --prompts-file')
        for name in ("num", "batch_size"):
            positive(name, getattr(self, name))
        for name in ("tries", "size"):
            non_negative(name, getattr(self, name))
        require(self.size <= 1024, "size", self.size, "at most 1024 pixels")
        require(1 <= self.enlarge <= 16, "enlarge", self.enlarge, "from 1 to 16")
        check_steps(self.steps)
        if self.resume and (self.overwrite or not self.out):
            raise ConfigError("resume goes on in the folder that --out names, and leaves overwrite off")
        if self.times and self.steps:
            raise ConfigError("give either steps or times: the list of times already says how many steps there are")
        _ = self.time_list  # raises for a list that cannot be read
        if self.times and self.shift != 1:
            raise ConfigError("give either shift or times: shift moves regular steps, and the list of times has none")
        for name in ("seed", "to_seed"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 2**32, name, value, "from 0 to 4294967295")
        if self.negative_prompt.strip():
            require(self.guidance > 1, "guidance", self.guidance, "above 1, such as 2, for negative_prompt to matter")
        if self.on_a_way or self.init_mask:
            require(not self.corrections, "corrections", self.corrections,
                    "0 between two prompts or seeds, and where a mask is given")
        if self.on_a_way:
            require(self.tries < 2, "tries", self.tries, "1 where to_prompt or to_seed asks for a way between two")
            require(self.num >= 2, "num", self.num, "at least 2, where to_prompt or to_seed asks for a way between two")
        else:
            require(self.seed + self.num <= 2**32, "seed + num", self.seed + self.num,
                    "at most 4294967296, since the seeds of the masks count up from seed and end at 4294967295")
        require(0 < self.strength <= 1, "strength", self.strength, "above 0 and at most 1")
        if not self.init_mask and self.strength != GenerateCfg.strength:
            raise ConfigError(f"strength is {self.strength:g}, but nothing is given of which to draw so much anew: "
                              "name --init-mask FILE")  # fmt: skip
        if not self.init_mask and self.keep:
            raise ConfigError(f"keep is {self.keep!r}, but nothing is given of which to keep it: name --init-mask FILE")
        if self.init_mask and self.zero_init > 0:
            raise ConfigError("zero_init leaves out steps from pure noise, and init_mask starts elsewhere: give one")
        _ = self.keep_box
        require(0 < self.threshold < 1, "threshold", self.threshold, "above 0 and below 1")

    @property
    def on_a_way(self) -> bool:
        """Whether the masks of a prompt lead to another prompt or seed."""
        return self.to_prompt is not None or self.to_seed is not None

    @property
    def keep_box(self) -> tuple[int, int, int, int] | None:
        """``keep`` as left, top, right, bottom; None where it names a file."""
        if not re.fullmatch(r"[-\d\s.]+(,[-\d\s.]*)+", self.keep):
            return None
        try:
            left, top, right, bottom = (int(part) for part in self.keep.split(","))
        except ValueError:
            left = top = right = bottom = -1
        ok = 0 <= left < right and 0 <= top < bottom
        require(ok, "keep", self.keep, "a file, or left,top,right,bottom in pixels, such as 0,0,32,64")
        return left, top, right, bottom

    @property
    def time_list(self) -> tuple[float, ...] | None:
        """``times`` as numbers, or None when it is empty."""
        if not self.times.strip():
            return None
        rule = "rising numbers from 0 to 1, such as 0,0.3,0.5,1"
        try:
            times = tuple(float(part) for part in self.times.split(","))
        except ValueError:
            raise ConfigError(f"times is {self.times!r}, but it must be {rule}") from None
        rising = all(a < b for a, b in pairwise(times))
        require(len(times) >= 2 and times[0] == 0 and times[-1] == 1 and rising, "times", self.times, rule)
        return times


def check_steps(steps: tuple[int, ...]) -> None:
    """Raise ``ConfigError`` unless the step counts are positive and differ."""
    require(all(count >= 1 for count in steps), "steps", steps, "positive whole numbers, such as 1 4 32")
    require(len(set(steps)) == len(steps), "steps", steps, "different numbers")
