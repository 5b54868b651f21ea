"""Stage 2: the network, the text conditioner, the sampler and the optimiser."""

from dataclasses import dataclass, field

from configs.backbone_cfg import Backbone, UNetCfg
from configs.checks import fraction, non_negative, positive, require
from configs.data_cfg import DataCfg
from configs.sampler_cfg import FlowMapCfg, LagrangianCfg, MeanFlowCfg, Sampler, ShortcutCfg
from configs.trainer_cfg import OptimCfg, TrainerCfg


@dataclass(frozen=True)
class TextCfg:
    """The frozen text encoder and what is trained on top of it."""

    encoder: str = "all-MiniLM-L6-v2"
    """all-MiniLM-L6-v2 comes inside a package (works offline); else a Hugging Face name or local folder (CLIP, T5)."""
    max_tokens: int = 32
    """Longer prompts are cut here, with a warning."""
    width: int = 128
    """Features of a prompt token inside the network."""
    articles: bool = True
    """Read "a", "an" and "the" before a word; False where captions have none, or the network would not know a prompt
    with one ("a key") from training."""

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
    """Faster average that gives the self-consistency targets; 1: the model of init, which stays as it is."""

    def __post_init__(self) -> None:
        fraction("ema.decay", self.decay, below_one=True)
        fraction("ema.teacher_decay", self.teacher_decay)


@dataclass(frozen=True)
class SketchCfg:
    """How a network with an encoder of sketches (backbone.sketch) is trained to follow them."""

    share: float = 0.5
    """Share of the training rows that are shown a sketch of their mask, made by models/sketch.py."""
    only: bool = False
    """Train the encoder alone, by sketches in every row: without one, the model of init draws what it always drew."""

    def __post_init__(self) -> None:
        fraction("sketch.share", self.share)


@dataclass(frozen=True)
class ReaderCfg:
    """A second network that learns to read captions of geometry off latents, and from which masks drawn in one step
    learn to be what they are asked for (models/reader.py)."""

    weight: float = 0.0
    """Of what the reader misses in masks drawn in one step; 0: no reader."""
    share: float = 1.0
    """Of a batch's prompts, as many masks are drawn for the reader, in the steps that learn self-consistency."""
    begin: float = 0.0
    """Share of the training in which the reader learns and nothing else does. After it, it learns beside the network,
    which learns from it as soon as it learns jumps (sampler.begin)."""
    lr: float = 2e-3
    """Peak learning rate of the reader, which has to keep ahead of what is drawn to deceive it."""
    width: int = 64
    """Channels of the reader."""

    def __post_init__(self) -> None:
        non_negative("reader.weight", self.weight)
        require(0 < self.share <= 1, "reader.share", self.share, "above 0 and at most 1")
        fraction("reader.begin", self.begin, below_one=True)
        positive("reader.lr", self.lr)
        positive("reader.width", self.width)


@dataclass(frozen=True)
class Stage2Cfg:
    """Everything that a stage-2 training needs."""

    autoencoder: str = "auto"
    """Stage 1's checkpoint; auto: the newest complete one of the same data under the runs folder, or that of init."""
    init: str = ""
    """Begin with the weights of this model (a stage-2 checkpoint, an export, icons, animals or geometry); its
    autoencoder, network and text settings are taken over, an encoder of sketches if backbone.sketch asks for one.
    Empty: begin anew."""
    data: DataCfg = field(default_factory=DataCfg)
    backbone: Backbone = field(default_factory=UNetCfg)
    text: TextCfg = field(default_factory=TextCfg)
    sketch: SketchCfg = field(default_factory=SketchCfg)
    reader: ReaderCfg = field(default_factory=ReaderCfg)
    sampler: Sampler = field(default_factory=ShortcutCfg)
    optim: OptimCfg = field(default_factory=OptimCfg)
    ema: EMACfg = field(default_factory=EMACfg)
    train: TrainerCfg = field(default_factory=TrainerCfg)

    def __post_init__(self) -> None:
        if isinstance(self.sampler, FlowMapCfg) and self.sampler.most_guidance > 0:
            require(self.backbone.guidance_input, "backbone.guidance_input", self.backbone.guidance_input,
                    f"True when sampler.most_guidance ({self.sampler.most_guidance:g}) is trained")
        if self.backbone.sketch:
            require(self.data.channels == 1, "backbone.sketch", self.backbone.sketch,
                    "0 for ordinary images (data.channels 3): the sketches to learn from are made of masks")
        if self.reader.weight:
            require(isinstance(self.sampler, FlowMapCfg), "reader.weight", self.reader.weight,
                    "0 for an objective that learns no jumps: the reader looks at masks drawn by a single one")
            require(not self.sketch.only, "reader.weight", self.reader.weight,
                    "0 where only the encoder of sketches is trained")
            require(self.train.strategy not in ("fsdp", "hybrid"), "reader.weight", self.reader.weight,
                    f"0 under train.strategy {self.train.strategy}, which does not share out the reader: take ddp")
        if isinstance(self.sampler, (MeanFlowCfg, LagrangianCfg)):
            # Two probes must lie on one slope of the embedding's fastest wave, or their difference is no derivative.
            fastest = 1 / self.sampler.probe
            require(self.backbone.fastest_rate <= fastest, "backbone.fastest_rate", self.backbone.fastest_rate,
                    f"at most 1/sampler.probe ({fastest:g}) for objectives that differentiate in time; 50 is a start")
