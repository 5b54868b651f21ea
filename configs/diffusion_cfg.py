"""Stage 2: the network, the text conditioner, the sampler and the optimiser."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import subcommand

from configs.backbone_cfg import Backbone, UNetCfg
from configs.checks import fraction, non_negative, one_of, positive, require
from configs.data_cfg import DataCfg
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

    def __post_init__(self) -> None:
        require(bool(self.encoder.strip()), "text.encoder", self.encoder, "the name or folder of a text encoder")
        require(self.max_tokens >= 3, "text.max_tokens", self.max_tokens, "at least 3")
        positive("text.width", self.width)


@dataclass(frozen=True)
class SamplerCfg:
    """What every sampler has."""

    steps: int = 1
    """Network steps of a generation that names no number of its own."""
    condition_drop: float = 0.1
    """Share of training rows whose prompt is dropped, which makes guidance possible."""
    loss_power: float = 0.0
    """Adaptive weight 1/(mean squared error + 0.01)^power per row (0: plain mean squared error)."""

    def __post_init__(self) -> None:
        positive("sampler.steps", self.steps)
        fraction("sampler.condition_drop", self.condition_drop)
        non_negative("sampler.loss_power", self.loss_power)


@dataclass(frozen=True)
class FlowCfg(SamplerCfg):
    """Plain flow matching on the straight path (Lipman et al. 2023; Liu et al. 2023)."""

    steps: int = 32
    time_mean: float = 0.0
    """Mean of the logit-normal law of the training times."""
    time_std: float = 1.0
    """Standard deviation of the logit-normal law of the training times (0: uniform times)."""
    heun: bool = False
    """Second-order steps: two network calls each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(math.isfinite(self.time_mean), "sampler.time_mean", self.time_mean, "a finite number")
        non_negative("sampler.time_std", self.time_std)


@dataclass(frozen=True)
class ShortcutCfg(FlowCfg):
    """Shortcut flow matching (Frans et al., ICLR 2025, arXiv 2410.12557), corrected."""

    steps: int = 1
    grid: int = 128
    """Smallest step is 1/grid; a power of two."""
    share: float = 0.125
    """Share of all training rows that learns self-consistency; the rest learns the flow."""
    every: int = 2
    """Self-consistency is learned in every n-th step, by n times as many rows: fewer, larger teacher batches."""
    consistency_weight: float = 1.0
    """Loss weight of a consistency row; a flow row has 1."""
    continuous: bool = False
    """Real-valued (t, dt) instead of the ladder of powers of two."""
    one_step_atom: float = 0.15
    """Share of the consistency rows that train the one-step query (0, 1) itself; used where continuous is on."""
    train_guidance: float = 1.0
    """Guidance that the consistency target takes from its smallest step (1: none), so that it costs nothing later."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.grid >= 2 and self.grid & (self.grid - 1) == 0, "sampler.grid", self.grid,
                "a power of two, such as 128")
        require(self.every >= 1, "sampler.every", self.every, "at least 1")
        require(0 < self.share * self.every < 1, "sampler.share", self.share,
                f"above 0 and below 1/sampler.every ({1 / self.every:.3g})")
        positive("sampler.consistency_weight", self.consistency_weight)
        fraction("sampler.one_step_atom", self.one_step_atom)
        non_negative("sampler.train_guidance", self.train_guidance)
        # A shortcut already contains the curvature of its step; Heun's correction would count it twice.
        require(not self.heun, "sampler.heun", self.heun, "off for shortcut steps; the flow sampler can use it")


@dataclass(frozen=True)
class DDPMCfg(SamplerCfg):
    """Denoising diffusion (Ho et al. 2020) with ancestral steps."""

    steps: int = 128
    timesteps: int = 1000
    """Length of the training chain."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Noise schedule (Nichol & Dhariwal 2021, or Ho et al. 2020)."""
    prediction: Literal["v", "eps"] = "v"
    """What the network answers (Salimans & Ho 2022, appendix D)."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that its end is pure noise (Lin et al. 2024)."""
    min_snr: float = 0.0
    """Bound gamma of the min-SNR loss weight (Hang et al. 2023); 0: no weighting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.timesteps >= 2, "sampler.timesteps", self.timesteps, "at least 2")
        require(self.steps <= self.timesteps, "sampler.steps", self.steps, f"at most timesteps ({self.timesteps})")
        one_of("sampler.schedule", self.schedule, ("cosine", "linear"))
        one_of("sampler.prediction", self.prediction, ("v", "eps"))
        require(not (self.zero_terminal_snr and self.prediction == "eps"), "sampler.prediction", self.prediction,
                "v when zero_terminal_snr is on: at pure noise eps says nothing about the mask")
        non_negative("sampler.min_snr", self.min_snr)


@dataclass(frozen=True)
class DDIMCfg(DDPMCfg):
    """DDPM's training with Song et al.'s steps (2021)."""

    steps: int = 32
    eta: float = 0.0
    """0: deterministic; 1: DDPM's noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("sampler.eta", self.eta)


Sampler = (
    Annotated[ShortcutCfg, subcommand("shortcut")]
    | Annotated[FlowCfg, subcommand("flow")]
    | Annotated[DDPMCfg, subcommand("ddpm")]
    | Annotated[DDIMCfg, subcommand("ddim")]
)


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
    backbone: Backbone = field(default_factory=UNetCfg)
    text: TextCfg = field(default_factory=TextCfg)
    sampler: Sampler = field(default_factory=ShortcutCfg)
    optim: OptimCfg = field(default_factory=OptimCfg)
    ema: EMACfg = field(default_factory=EMACfg)
    train: TrainerCfg = field(default_factory=TrainerCfg)
