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
    """A second network that reads captions of geometry off latents, by which masks that were drawn are corrected to be
    what they are asked for (models/reader.py)."""

    width: int = 0
    """Channels of the reader; 0: as many as that of init has, if it has one."""
    only: bool = False
    """Train the reader alone; the network stays that of init."""
    begin: float = 0.5
    """Share of its training after which it learns from drawn and corrected masks, too."""
    steps: int = 10
    """These masks are corrected in up to so many steps, so that it learns to see what its corrections make of them."""

    def __post_init__(self) -> None:
        non_negative("reader.width", self.width)
        fraction("reader.begin", self.begin, below_one=True)
        positive("reader.steps", self.steps)


@dataclass(frozen=True)
class CriticCfg:
    """A second network that learns to tell masks of a single step from training masks, by which a trained network's
    single step learns in place of the sampler's loss (models/latent_critic.py)."""

    width: int = 0
    """Channels of its heads; 0: no critic."""
    lr: float = 3e-4
    """Peak learning rate of the critic; a tenth of it for the network (optim.lr) is a start, with optim.beta1 0."""
    alone: int = 150
    """Steps in which the critic learns, and the network does not yet."""
    mismatched: float = 0.5
    """Share of the masks that it is shown with another mask's prompt, too, and how much that counts."""
    earliest: float = 0.5
    """Noise level at which it looks at latents: from this time (0: noise) ..."""
    latest: float = 0.95
    """... to this (1: no noise)."""
    anchor: float = 0.0
    """Weight of a step's distance from what the model of init draws from the same noise, which keeps its variety where
    most prompts have a single mask (10 was tried, on icons)."""
    anchor_steps: int = 4
    """Steps in which that model draws it."""

    def __post_init__(self) -> None:
        non_negative("critic.width", self.width)
        non_negative("critic.anchor", self.anchor)
        positive("critic.anchor_steps", self.anchor_steps)
        positive("critic.lr", self.lr)
        non_negative("critic.alone", self.alone)
        fraction("critic.mismatched", self.mismatched)
        fraction("critic.latest", self.latest)
        require(0 <= self.earliest < self.latest, "critic.earliest", self.earliest,
                f"from 0 to below critic.latest ({self.latest:g})")


@dataclass(frozen=True)
class Stage2Cfg:
    """Everything that a stage-2 training needs."""

    autoencoder: str = "auto"
    """Stage 1's checkpoint, or a model whose autoencoder is taken (a stage-2 checkpoint, an export, icons, icons256,
    animals or geometry); beside init, one that grew from its own (init of stage 1); auto: the newest complete stage 1
    of the same data under the runs folder, or that of init."""
    init: str = ""
    """Begin with the weights of this model (a stage-2 checkpoint, an export, icons, icons256, animals or geometry); its
    autoencoder, network and text settings are taken over, an encoder of sketches if backbone.sketch asks for one.
    Empty: begin anew."""
    data: DataCfg = field(default_factory=DataCfg)
    backbone: Backbone = field(default_factory=UNetCfg)
    text: TextCfg = field(default_factory=TextCfg)
    sketch: SketchCfg = field(default_factory=SketchCfg)
    reader: ReaderCfg = field(default_factory=ReaderCfg)
    critic: CriticCfg = field(default_factory=CriticCfg)
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
        if self.reader.only:
            require(not self.sketch.only, "reader.only", True, "False where only the encoder of sketches is trained")
            require(self.optim.muon_lr == 0, "optim.muon_lr", self.optim.muon_lr, "0 where only the reader is trained")
            require(isinstance(self.sampler, FlowMapCfg), "reader.only", True,
                    "False for an objective that learns no jumps: the reader looks at masks drawn by a single one")
            require(self.train.strategy not in ("fsdp", "hybrid"), "reader.only", True,
                    f"False under train.strategy {self.train.strategy}, which does not share out the reader: take ddp")
        require(self.critic.anchor == 0 or self.critic.width > 0, "critic.anchor", self.critic.anchor,
                "0 without a critic: give critic.width, such as 64")
        if self.critic.width:
            only = "reader.only" if self.reader.only else "sketch.only"
            require(not (self.sketch.only or self.reader.only), "critic.width", self.critic.width, f"0 with {only}")
            require(isinstance(self.sampler, FlowMapCfg), "critic.width", self.critic.width,
                    "0 for an objective that learns no jumps: the critic looks at masks of a single one")
            require(self.train.strategy not in ("fsdp", "hybrid"), "critic.width", self.critic.width,
                    f"0 under train.strategy {self.train.strategy}, which does not share out the critic: take ddp")
            require(self.optim.muon_lr == 0, "optim.muon_lr", self.optim.muon_lr, "0 where a critic is trained")
            require(self.critic.anchor == 0 or self.ema.teacher_decay == 1, "critic.anchor", self.critic.anchor,
                    f"0 unless ema.teacher_decay ({self.ema.teacher_decay:g}) is 1: the model of init is the anchor")
            require(self.critic.alone < self.train.max_steps, "critic.alone", self.critic.alone,
                    f"below train.max_steps ({self.train.max_steps}), or the network would learn nothing")
        if isinstance(self.sampler, (MeanFlowCfg, LagrangianCfg)):
            # Two probes must lie on one slope of the embedding's fastest wave, or their difference is no derivative.
            fastest = 1 / self.sampler.probe
            require(self.backbone.fastest_rate <= fastest, "backbone.fastest_rate", self.backbone.fastest_rate,
                    f"at most 1/sampler.probe ({fastest:g}) for objectives that differentiate in time; 50 is a start")
