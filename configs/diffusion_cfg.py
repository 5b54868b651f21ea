"""Stage 2: the network, the text conditioner, the sampler and the optimiser."""

from dataclasses import dataclass, field
from typing import Literal

from configs.checks import fraction, one_of, positive, require
from configs.data_cfg import DataCfg
from configs.sampler_cfg import Sampler, ShortcutCfg
from configs.trainer_cfg import OptimCfg, TrainerCfg


@dataclass(frozen=True)
class UNetCfg:
    """The wavelet UNet."""

    width: int = 128
    """Channels at the full latent size."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level, as multiples of width; each level after the first halves the size."""
    blocks: int = 2
    """Residual blocks per level on the way down (one more on the way up)."""
    attention_sizes: tuple[int, ...] = (4, 8, 16)
    """Latent sizes at which the blocks attend to each other and to the prompt."""
    head_channels: int = 32
    """Channels of one attention head."""
    dropout: float = 0.0
    """Dropout inside the residual blocks."""
    resample: Literal["wavelet", "conv"] = "wavelet"
    """wavelet: gated Haar bands; conv: strided and nearest-neighbour convolutions of nearly as many parameters."""
    gate: Literal["concat", "sum"] = "concat"
    """How the gated bands come together on the way down (sum: Spectral Diffusion's form)."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """auto is torch's own kernel; xformers is tried on CUDA only."""

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "head_channels"):
            positive(f"backbone.{name}", getattr(self, name))
        require(
            len(self.multipliers) >= 1 and min(self.multipliers, default=0) >= 1,
            "backbone.multipliers", self.multipliers, "one or more positive numbers, such as 1 2",
        )
        require(self.width % 32 == 0, "backbone.width", self.width, "a multiple of 32")
        require(self.width % self.head_channels == 0, "backbone.head_channels", self.head_channels,
                f"a divisor of backbone.width ({self.width})")
        fraction("backbone.dropout", self.dropout, below_one=True)
        one_of("backbone.resample", self.resample, ("wavelet", "conv"))

    @property
    def factor(self) -> int:
        """The latent's height and width must be multiples of this."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class TextCfg:
    """The frozen text encoder and what is trained on top of it."""

    encoder: str = "all-MiniLM-L6-v2"
    """all-MiniLM-L6-v2 comes inside a package (works offline); else a Hugging Face name or local folder (CLIP, T5)."""
    max_tokens: int = 32
    """Longer prompts are cut here, with a warning."""
    width: int = 128
    """Features of a prompt token inside the network."""

    def __post_init__(self) -> None:
        require(bool(self.encoder.strip()), "text.encoder", self.encoder, "the name or folder of a text encoder")
        require(self.max_tokens >= 3, "text.max_tokens", self.max_tokens, "at least 3")
        positive("text.width", self.width)


@dataclass(frozen=True)
class EMACfg:
    """Twin averages of the weights."""

    decay: float = 0.999
    """Average that generates masks."""
    teacher_decay: float = 0.95
    """Faster average that gives the self-consistency targets."""

    def __post_init__(self) -> None:
        fraction("ema.decay", self.decay, below_one=True)
        fraction("ema.teacher_decay", self.teacher_decay, below_one=True)


@dataclass(frozen=True)
class Stage2Cfg:
    """Everything that a stage-2 training needs."""

    autoencoder: str = "auto"
    """Stage 1's checkpoint; auto: the newest complete one of the same data under the runs folder."""
    data: DataCfg = field(default_factory=DataCfg)
    backbone: UNetCfg = field(default_factory=UNetCfg)
    text: TextCfg = field(default_factory=TextCfg)
    sampler: Sampler = field(default_factory=ShortcutCfg)
    optim: OptimCfg = field(default_factory=OptimCfg)
    ema: EMACfg = field(default_factory=EMACfg)
    train: TrainerCfg = field(default_factory=TrainerCfg)
