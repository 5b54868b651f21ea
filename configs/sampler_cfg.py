"""What stage 2 learns and how it steps: one config class for each objective."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import subcommand

from configs.checks import fraction, non_negative, one_of, positive, require

PAIRINGS = ("none", "prompt", "batch")
BANDS = ("none", "parseval", "uniform", "hf", "whiten")
JUMPS = ("uniform", "log", "two-times")


@dataclass(frozen=True)
class SamplerCfg:
    """What every sampler has."""

    steps: int = 1
    """Network steps of a generation that names no number of its own."""
    condition_drop: float = 0.1
    """Share of training rows whose prompt is dropped, which makes guidance possible."""
    loss_power: float = 0.0
    """Adaptive weight 1/(mean squared error + 0.01)^power per row (0: plain mean squared error)."""
    bands: Literal["none", "parseval", "uniform", "hf", "whiten"] = "none"
    """Weights of the error's wavelet bands: see models/band_loss.py (none and parseval: the mean squared error)."""
    band_levels: int = 2
    """Depth of the wavelet pyramid of sampler.bands."""

    def __post_init__(self) -> None:
        positive("sampler.steps", self.steps)
        fraction("sampler.condition_drop", self.condition_drop)
        non_negative("sampler.loss_power", self.loss_power)
        one_of("sampler.bands", self.bands, BANDS)
        positive("sampler.band_levels", self.band_levels)


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
    prediction: Literal["v", "x"] = "v"
    """What the network's last layer means: the velocity, or the mask's latent from which the velocity follows."""
    pairing: Literal["none", "prompt", "batch"] = "none"
    """Pair noise and data by optimal transport: among rows of one prompt, or over the batch whatever the prompts."""
    plug_in: float = 0.0
    """Share of the flow rows that learn the mean velocity over the batch's rows of their prompt, with less noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(math.isfinite(self.time_mean), "sampler.time_mean", self.time_mean, "a finite number")
        non_negative("sampler.time_std", self.time_std)
        one_of("sampler.prediction", self.prediction, ("v", "x"))
        one_of("sampler.pairing", self.pairing, PAIRINGS)
        fraction("sampler.plug_in", self.plug_in)


@dataclass(frozen=True)
class FlowMapCfg(FlowCfg):
    """What all objectives have whose network answers steps of any length."""

    steps: int = 1
    share: float = 0.125
    """Share of all training rows that learns self-consistency; the rest learns the flow."""
    every: int = 2
    """Self-consistency is learned in every n-th step, by n times as many rows: fewer, larger teacher batches."""
    consistency_weight: float = 1.0
    """Loss weight of a consistency row; a flow row has 1."""
    one_step_atom: float = 0.15
    """Share of the consistency rows that train the one-step query (0, 1) itself; used where (t, dt) are continuous."""
    jumps: Literal["uniform", "log", "two-times"] = "uniform"
    """Law of continuous (t, dt): dt uniform in (0, 1 - t), log-uniform, or the gap between two of the flow's times."""
    train_guidance: float = 1.0
    """Guidance that the targets of steps dt > 0 take from the velocity (1: none), so that it costs nothing later."""
    most_guidance: float = 0.0
    """Train every guidance from 1 to this as an input (0: only train_guidance); needs backbone.guidance_input."""
    begin: float = 0.0
    """Share of the training after which self-consistency begins; until then all rows learn the flow."""
    flow_power: float | None = None
    """loss_power of the flow rows; none: the same."""
    perceptual_weight: float = 0.0
    """Weight of the error in the features of the frozen decoder, for rows whose step ends on a mask (0: none)."""
    curriculum: float = 0.0
    """Share of the training in which the longest step grows from the shortest to 1 (0: all from the start)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.every >= 1, "sampler.every", self.every, "at least 1")
        require(0 < self.share * self.every < 1, "sampler.share", self.share,
                f"above 0 and below 1/sampler.every ({1 / self.every:.3g})")
        positive("sampler.consistency_weight", self.consistency_weight)
        fraction("sampler.one_step_atom", self.one_step_atom)
        one_of("sampler.jumps", self.jumps, JUMPS)
        non_negative("sampler.train_guidance", self.train_guidance)
        non_negative("sampler.most_guidance", self.most_guidance)
        require(self.most_guidance == 0 or self.most_guidance >= self.train_guidance >= 1, "sampler.most_guidance",
                self.most_guidance, f"0, or at least train_guidance ({self.train_guidance:g}), which must be 1 or more")
        fraction("sampler.begin", self.begin, below_one=True)
        non_negative("sampler.perceptual_weight", self.perceptual_weight)
        if self.flow_power is not None:
            non_negative("sampler.flow_power", self.flow_power)
        fraction("sampler.curriculum", self.curriculum)
        # An average velocity already contains the curvature of its step; Heun's correction would count it twice.
        require(not self.heun, "sampler.heun", self.heun, "off for average velocities; the flow sampler can use it")


@dataclass(frozen=True)
class ShortcutCfg(FlowMapCfg):
    """Shortcut flow matching (Frans et al., ICLR 2025, arXiv 2410.12557), corrected."""

    grid: int = 128
    """Smallest step is 1/grid; a power of two."""
    continuous: bool = False
    """Real-valued (t, dt) instead of the ladder of powers of two."""
    ladder_bias: float = 0.0
    """Share of the consistency rows that the ladder gives to the one-step query (0, 1) beyond its equal share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.grid >= 2 and self.grid & (self.grid - 1) == 0, "sampler.grid", self.grid,
                "a power of two, such as 128")
        fraction("sampler.ladder_bias", self.ladder_bias, below_one=True)


@dataclass(frozen=True)
class SplitCfg(FlowMapCfg):
    """SplitMeanFlow (2507.16884): one step equals two steps of any lengths."""

    jumps: Literal["uniform", "log", "two-times"] = "log"
    grid: int = 128
    """Steps up to 1/grid are asked as dt = 0, which the flow rows train."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.grid >= 2, "sampler.grid", self.grid, "at least 2")


@dataclass(frozen=True)
class SoFlowCfg(FlowMapCfg):
    """SoFlow (2512.15657) and alpha-Flow (2510.20771): a short first part along the data's own velocity."""

    jumps: Literal["uniform", "log", "two-times"] = "two-times"
    schedule: Literal["exponential", "sigmoid"] = "exponential"
    """How the first part's share of the step shrinks over the training: SoFlow's law, or alpha-Flow's."""
    first_part: float = 0.1
    """The first part's share at the start (exponential; sigmoid starts at 1)."""
    last_part: float = 0.002
    """The first part's share at the end."""
    data_velocity: float = 1.0
    """Weight of the data's velocity in the first part; the rest is the teacher's (SoFlow with guidance: 0.25)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("sampler.schedule", self.schedule, ("exponential", "sigmoid"))
        require(0 < self.first_part <= 1, "sampler.first_part", self.first_part, "above 0 and at most 1")
        require(0 < self.last_part <= self.first_part, "sampler.last_part", self.last_part,
                f"above 0 and at most sampler.first_part ({self.first_part:g})")
        fraction("sampler.data_velocity", self.data_velocity)


@dataclass(frozen=True)
class MeanFlowCfg(FlowMapCfg):
    """MeanFlow (2505.13447) with its total derivative by finite differences in fp32."""

    jumps: Literal["uniform", "log", "two-times"] = "two-times"
    probe: float = 0.005
    """Distance of the two probes of the derivative, in time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.probe <= 0.1, "sampler.probe", self.probe, "above 0 and at most 0.1")


@dataclass(frozen=True)
class IMFCfg(MeanFlowCfg):
    """Improved MeanFlow (2512.02012): its derivative runs along the network's own velocity."""


@dataclass(frozen=True)
class LagrangianCfg(FlowMapCfg):
    """Lagrangian self-distillation (2505.18825), with a fixed target: the jump's end moves with the velocity there."""

    probe: float = 0.005
    """Distance of the two probes of the derivative, in time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.probe <= 0.1, "sampler.probe", self.probe, "above 0 and at most 0.1")
        # It asks for the velocity at the very end of the path, where (mask - x)/(1 - t) is 0/0.
        require(self.prediction == "v", "sampler.prediction", self.prediction, "v for this objective")


@dataclass(frozen=True)
class TrajectoryCfg(FlowMapCfg):
    """Self-distillation along whole paths of the network's own flow: targets come from velocities alone.

    It suits a slow teacher (ema.teacher_decay near ema.decay) and a late begin. A trained model's single step is
    brought near its several steps by paths of jumps (``jumps_from`` 0) of a teacher that stays as it is
    (ema.teacher_decay 1).
    """

    nodes: int = 8
    """Solver steps of each path; with guidance, each is a teacher call on two rows."""
    per_path: int = 4
    """Consistency rows that share a path."""
    jumps_from: float = 1.0
    """Share of the training after which the teacher takes its paths by its own jumps in place of velocities: they hold
    guidance, so few calls on one row each are enough (1: never; 0: for a teacher that has learned them, see init)."""
    jump_nodes: int = 4
    """Jumps of each path from then on."""
    jump_per_path: int = 2
    """Consistency rows that share a path from then on."""
    jump_guidance: float = 1.0
    """Guidance of these jumps beside what they hold already: below 1, what is learned from them follows prompts less
    closely and varies more, as real masks do. At other values than 1 each jump is a teacher call on two rows."""
    jitter: float = 0.5
    """By how much of a step the nodes move at random, so that steps of any length are met (0: even steps)."""

    @property
    def jumps_at_once(self) -> bool:
        """Whether no path is ever taken by velocities, so that the teacher must have learned jumps before."""
        return self.jumps_from < 1 and self.jumps_from <= self.begin

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("sampler.jumps_from", self.jumps_from)
        for name in ("nodes", "jump_nodes"):
            require(getattr(self, name) >= 2, f"sampler.{name}", getattr(self, name), "at least 2")
        for name in ("per_path", "jump_per_path"):
            positive(f"sampler.{name}", getattr(self, name))
        positive("sampler.jump_guidance", self.jump_guidance)
        require(self.jump_guidance == 1 or self.jumps_from < 1, "sampler.jump_guidance", self.jump_guidance,
                "1 where no path is taken by jumps (sampler.jumps_from 1)")
        require(self.jump_guidance == 1 or self.most_guidance == 0, "sampler.jump_guidance", self.jump_guidance,
                "1 where guidance is an input of the network (sampler.most_guidance), which learns all of it")
        require(0 <= self.jitter <= 1, "sampler.jitter", self.jitter, "from 0 to 1")


@dataclass(frozen=True)
class DDPMCfg(SamplerCfg):
    """Denoising diffusion (Ho et al. 2020) with ancestral steps."""

    steps: int = 128
    timesteps: int = 1000
    """Length of the training chain."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Noise schedule (Nichol & Dhariwal 2021, or Ho et al. 2020)."""
    prediction: Literal["v", "eps"] = "v"
    """What the network answers (Salimans & Ho 2022, appendix D). With eps take schedule linear: at the start of the
    cosine one the mask is read from 1/20,000 of its size, and errors of eps grow as much."""
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
    | Annotated[SplitCfg, subcommand("split")]
    | Annotated[SoFlowCfg, subcommand("soflow")]
    | Annotated[MeanFlowCfg, subcommand("meanflow")]
    | Annotated[IMFCfg, subcommand("imf")]
    | Annotated[LagrangianCfg, subcommand("lagrangian")]
    | Annotated[TrajectoryCfg, subcommand("trajectory")]
    | Annotated[DDPMCfg, subcommand("ddpm")]
    | Annotated[DDIMCfg, subcommand("ddim")]
)
