"""Stage 1: the shape of the VAE, its losses and its optimiser."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import subcommand

from configs.checks import ConfigError, fraction, non_negative, positive, require
from configs.data_cfg import DataCfg
from configs.trainer_cfg import OptimCfg, TrainerCfg


@dataclass(frozen=True)
class MaskLossCfg:
    """Binary cross-entropy plus soft Dice, for binary masks."""

    dice: float = 1.0
    """Weight of the soft Dice loss beside the cross-entropy."""
    max_pos_weight: float = 10.0
    """Bound of the weight that evens out few foreground pixels (1: no weighting)."""

    def __post_init__(self) -> None:
        non_negative("autoencoder.loss.dice", self.dice)
        require(self.max_pos_weight >= 1, "autoencoder.loss.max_pos_weight", self.max_pos_weight, "at least 1")


@dataclass(frozen=True)
class L1LossCfg:
    """Mean absolute error of the pixels, for ordinary images; beside it, where asked for, LPIPS and a critic."""

    lpips: float = 0.0
    """Weight of LPIPS, an error in the features of a network that you have the weights of."""
    lpips_network: str = ""
    """Their file, as torchvision gives it out: vgg16-397923af.pth or alexnet-owt-7be5be79.pth."""
    critic: float = 0.0
    """Weight of a patch critic that learns to tell rebuilt images from real ones, 1 for a gradient as long as that of
    the rest; 0: none."""
    critic_begin: float = 0.5
    """Share of the training after which the autoencoder learns from the critic, which learns from the beginning."""

    def __post_init__(self) -> None:
        non_negative("autoencoder.loss.lpips", self.lpips)
        non_negative("autoencoder.loss.critic", self.critic)
        fraction("autoencoder.loss.critic_begin", self.critic_begin, below_one=True)
        require(not self.lpips or bool(self.lpips_network), "autoencoder.loss.lpips_network", self.lpips_network,
                f"the file of a network's weights where autoencoder.loss.lpips is {self.lpips:g}")
        require(bool(self.lpips) or not self.lpips_network, "autoencoder.loss.lpips", self.lpips,
                "above 0, such as 1, for lpips_network to matter")


@dataclass(frozen=True)
class KLCfg:
    """Kullback-Leibler divergence of the posterior from a standard Gaussian (Kingma & Welling 2014, appendix B)."""

    weight: float = 1e-6
    """Weight of the divergence, summed over the latent and divided by the number of pixels."""

    def __post_init__(self) -> None:
        non_negative("autoencoder.regulariser.weight", self.weight)


@dataclass(frozen=True)
class VarianceExpansionCfg:
    """Reward for a large posterior variance: 1/(variance + delta), with a soft bound on the mean."""

    weight: float = 0.1
    """Weight of the mean of 1/(variance + delta)."""
    delta: float = 1.0
    """Keeps the reward finite."""
    bound: float = 1e-6
    """Weight of exp(|mean| - 1), which keeps the means from running away."""

    def __post_init__(self) -> None:
        non_negative("autoencoder.regulariser.weight", self.weight)
        positive("autoencoder.regulariser.delta", self.delta)
        non_negative("autoencoder.regulariser.bound", self.bound)


ReconstructionLoss = Annotated[MaskLossCfg, subcommand("mask")] | Annotated[L1LossCfg, subcommand("l1")]
Regulariser = Annotated[KLCfg, subcommand("kl")] | Annotated[VarianceExpansionCfg, subcommand("ve")]


@dataclass(frozen=True)
class AutoencoderCfg:
    """A convolutional VAE; it shrinks images by ``patch``, and by 2 at each of the ``multipliers`` after the first."""

    latent_channels: int = 4
    """Channels of the latent."""
    patch: int = 1
    """Side of the squares of pixels that the network reads, and answers, as one place: with 4 it takes about as long
    for masks of 256 pixels as without for masks of 64."""
    width: int = 32
    """Channels at full size, or of the squares."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """Channels of each level, as multiples of width."""
    blocks: int = 1
    """Residual blocks per level."""
    loss: ReconstructionLoss = field(default_factory=MaskLossCfg)
    """How a reconstruction is judged."""
    regulariser: Regulariser = field(default_factory=KLCfg)
    """What keeps the latent space smooth."""
    equivariance: float = 0.0
    """Share of the batches whose latents are turned and shrunk and must decode to masks changed alike (EQ-VAE)."""

    def __post_init__(self) -> None:
        for name in ("latent_channels", "patch", "width", "blocks"):
            positive(f"autoencoder.{name}", getattr(self, name))
        require(
            len(self.multipliers) >= 2 and min(self.multipliers, default=0) >= 1,
            "autoencoder.multipliers", self.multipliers, "two or more positive numbers, such as 1 2 4",
        )
        fraction("autoencoder.equivariance", self.equivariance)
        require(self.width % 8 == 0, "autoencoder.width", self.width, "a multiple of 8")
        require(not self.has_critic or not self.equivariance, "autoencoder.equivariance", self.equivariance,
                "0 beside a critic (autoencoder.loss.critic), which would tell turned images by that")

    @property
    def has_critic(self) -> bool:
        """Whether a critic is trained beside the autoencoder."""
        return isinstance(self.loss, L1LossCfg) and self.loss.critic > 0

    @property
    def factor(self) -> int:
        """How many image pixels lie along one latent pixel."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class ImportedCfg(AutoencoderCfg):
    """An ``AutoencoderKL`` of diffusers, frozen: scripts/import_autoencoder.py makes this, and nothing trains it."""

    config: str = "{}"
    """Its config, in JSON; ``multipliers`` only says how much it shrinks an image."""


@dataclass(frozen=True)
class Stage1Cfg:
    """Everything that a stage-1 training needs."""

    data: DataCfg = field(default_factory=DataCfg)
    init: str = ""
    """A model or stage 1, such as icons, that grows to the size of these masks, a multiple of its own: its latents stay
    (the encoder sees masks shrunk to its size, in grey), and a decoder learns to draw the larger masks from them."""
    autoencoder: AutoencoderCfg = field(default_factory=AutoencoderCfg)
    optim: OptimCfg = field(default_factory=OptimCfg)
    ema: float = 0.999
    """Decay of the averaged weights that are validated and handed to stage 2 (0: use the raw weights)."""
    train: TrainerCfg = field(default_factory=TrainerCfg)

    def __post_init__(self) -> None:
        fraction("ema", self.ema, below_one=True)
        require(self.optim.muon_lr == 0, "optim.muon_lr", self.optim.muon_lr, "0 in stage 1: Muon is for stage 2")
        shared_out = self.train.strategy in ("fsdp", "hybrid")
        require(not self.autoencoder.has_critic or not shared_out, "train.strategy", self.train.strategy,
                "ddp beside a critic (autoencoder.loss.critic), which is not shared out")
        size, factor = self.data.image_size, self.autoencoder.factor
        if size % factor:
            raise ConfigError(
                f"data.image_size is {size}, but the autoencoder shrinks images by {factor}: "
                f"take a multiple of {factor}, such as {max(factor, round(size / factor) * factor)}"
            )
