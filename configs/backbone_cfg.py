"""Stage 2's network: a wavelet UNet or a Diffusion Transformer."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import subcommand

from configs.checks import fraction, one_of, positive, require


@dataclass(frozen=True)
class BackboneCfg:
    """What every network has."""

    width: int = 128
    """Channels at the full latent size."""
    head_channels: int = 32
    """Channels of one attention head."""
    dropout: float = 0.0
    """Dropout inside the blocks."""
    checkpointing: bool = False
    """Forget what is inside a block and compute it again in the backward pass: less memory, a forward pass more."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """auto is torch's own kernel; xformers is tried on CUDA only."""
    guidance_input: bool = False
    """The network also hears the guidance strength of each row, for samplers that train guidance into it."""
    fastest_rate: float = 1000.0
    """Time and step reach the network as waves of up to this many radians per unit; derivatives in time need 50."""
    sketch: int = 0
    """Channels of an encoder of sketches (64 is a start), which makes the network take image prompts; 0: none."""

    def __post_init__(self) -> None:
        for name in ("width", "head_channels"):
            positive(f"backbone.{name}", getattr(self, name))
        require(self.width % 32 == 0, "backbone.width", self.width, "a multiple of 32")
        require(self.width % self.head_channels == 0, "backbone.head_channels", self.head_channels,
                f"a divisor of backbone.width ({self.width})")
        require(1 < self.fastest_rate < math.inf, "backbone.fastest_rate", self.fastest_rate, "a number above 1")
        require(self.sketch >= 0 and self.sketch % 32 == 0, "backbone.sketch", self.sketch, "0 or a multiple of 32")
        fraction("backbone.dropout", self.dropout, below_one=True)
        one_of("backbone.attention", self.attention, ("auto", "sdpa", "xformers"))


@dataclass(frozen=True)
class UNetCfg(BackboneCfg):
    """The wavelet UNet."""

    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level, as multiples of width; each level after the first halves the size."""
    blocks: int = 2
    """Residual blocks per level on the way down (one more on the way up)."""
    attention_sizes: tuple[int, ...] = (4, 8, 16)
    """Latent sizes at which the blocks attend to each other and to the prompt; a training wants one that there is."""
    resample: Literal["wavelet", "conv"] = "wavelet"
    """wavelet: Haar bands; conv: ordinary convolutions in their place, for comparison."""
    gate: Literal["concat", "sum"] = "concat"
    """How the gated bands come together on the way down (sum: Spectral Diffusion's form)."""
    gates: bool = False
    """Time and features gate the wavelet bands; off: the bands are only mixed, which is as good and faster."""
    band_skips: bool = False
    """The high bands of the way down enter the inverse transforms of the way up; the same holds for them."""
    conv_kernel: Literal[2, 3] = 3
    """For resample conv: with 2 the network has the plain wavelet one's parameters and operations, with 3 the
    parameters (within 1 %) of one with gates and band skips."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("backbone.blocks", self.blocks)
        require(
            len(self.multipliers) >= 1 and min(self.multipliers, default=0) >= 1,
            "backbone.multipliers", self.multipliers, "one or more positive numbers, such as 1 2",
        )
        one_of("backbone.resample", self.resample, ("wavelet", "conv"))
        one_of("backbone.gate", self.gate, ("concat", "sum"))
        one_of("backbone.conv_kernel", self.conv_kernel, (2, 3))
        # The plain sum of the four Haar bands is twice the top-left pixel: without gates nothing but decimation.
        require(self.gates or self.gate == "concat", "backbone.gate", self.gate, "concat where backbone.gates is off")

    @property
    def factor(self) -> int:
        """The latent's height and width must be multiples of this."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class DiTCfg(BackboneCfg):
    """A Diffusion Transformer (Peebles & Xie, ICCV 2023, arXiv 2212.09748)."""

    width: int = 192
    """Channels of each patch."""
    depth: int = 6
    """Transformer blocks."""
    mlp_ratio: int = 4
    """Hidden channels of a block's MLP, as a multiple of width."""
    patch_size: Literal[1, 2, 4] = 2
    """Side of a patch, in latent pixels."""
    patch: Literal["linear", "wavelet"] = "linear"
    """What a patch's linear layers see: its pixels, or its Haar bands (the same functions in another basis)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depth", "mlp_ratio"):
            positive(f"backbone.{name}", getattr(self, name))
        one_of("backbone.patch_size", self.patch_size, (1, 2, 4))
        one_of("backbone.patch", self.patch, ("linear", "wavelet"))


Backbone = Annotated[UNetCfg, subcommand("unet")] | Annotated[DiTCfg, subcommand("dit")]
