"""From a folder of masks to the configs of both stages: the rules of ``scripts/quickstart.sh --data``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from configs.autoencoder_cfg import AutoencoderCfg, KLCfg, Stage1Cfg
from configs.backbone_cfg import UNetCfg
from configs.checks import positive, require
from configs.data_cfg import AugmentCfg, DataCfg, FolderSource
from configs.diffusion_cfg import EMACfg, Stage2Cfg, TextCfg
from configs.presets import ADAMW, MUON, SMALL_UNET, TRAJECTORY
from configs.trainer_cfg import OptimCfg, TrainerCfg

SIZES = (32, 64, 256)
"""Image sizes to choose from."""
CRISP = {32: 0.85, 64: 0.97}
"""IoU with itself at the largest size that a mask keeps at a smaller one, to count as crisp there: at 32 pixels a
training is cheaper, at 64 it only takes less memory."""
MOST_LARGE = 10_000
"""Masks that may be held at the largest size: 0.7 GB, a few times that while they are read and judged."""
STAGE_1 = 0.2
"""Share of the time for stage 1; stage 2 gets what then is left before the judging (see ``trained``)."""
JUDGING = 3.0
"""Minutes for judging and drawing, or a fifth of a shorter time."""
ENDLESS = 1_000_000
"""Steps: more than a time limit lets happen."""


def trained(minutes: float) -> float:
    """Of the minutes for everything, those after which the training ends."""
    return minutes - min(JUDGING, minutes / 5)


@dataclass(frozen=True)
class QuickstartCfg:
    """A folder and a time."""

    data: str
    """Folder with your masks; without captions of their own, they get some from their geometry (metadata.jsonl)."""
    minutes: float = 10.0
    """Time for everything: reading, training both stages, judging and drawing."""
    out: str = ""
    """Folder to write to; empty: a new one, runs/quickstart, runs/quickstart-2 ..."""

    def __post_init__(self) -> None:
        require(bool(self.data.strip()), "data", self.data, "the path of a folder with masks")
        positive("minutes", self.minutes)


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    masks: int
    """Masks to train on."""
    crisp: Mapping[int, float]
    """Image size below the largest -> share of the masks that are crisp (see CRISP) at it."""
    tokens: int
    """Tokens of the longest prompt, with the two that mark its ends."""
    on_gpu: bool
    from_geometry: bool = False
    """The prompts are captions of geometry, which can be made anew for a changed mask."""


def own_masks(folder: str, facts: Facts, minutes: float) -> tuple[Stage1Cfg | None, Stage2Cfg]:
    """Both stages for a folder of masks, by these rules; no stage 1 where stage 2 brings its own.

    * **Image size**: the smallest at which nine of ten masks are crisp; at most 64 pixels for more than 10,000 masks.
    * **64 and 256 pixels**: begin with both stages of ``icons`` or ``icons256``, whose autoencoder rebuilds masks that
      it never saw (IoU 0.998 on drawn shapes of 64 pixels), so that all the time goes into stage 2; with captions of
      geometry, of ``geometry``, which has learned to size and place, and brings a reader that corrects the rest. All
      three share their latents, so that a step of 256 pixels takes as long as one of 64.
    * **Latent** at 32 pixels: 8x8 on a CPU and 16x16 on a GPU, so the autoencoder shrinks by 4 and 2; it has 4 channels
      where it shrinks by 2, and 2 where by 4 (docs/results.md).
    * **Versions**: with captions of geometry, as many of each mask (moved, resized, captioned anew) as make 8,192
      masks, at most 24; else none, since other captions could become wrong.
    * **Batch**: the largest power of two that a quarter of the masks, versions included, fills, from 16 to 128 on a CPU
      (64 at 64 and 256 pixels) and 512 on a GPU.
    * **Devices**: one.
    * **Network**: the UNet of width 64 on a CPU (that of the quickstart), of width 96 with a third level on a GPU.
    * **Tokens**: 16, or 32, or 64 if a prompt has more than the number before.
    * **Time**: a fifth for stage 1, three minutes (or a fifth of a shorter time) for judging and drawing, the rest for
      reading and stage 2. Learning rate and objective follow the time, not a number
      of steps; the objective is that of the quickstart: the flow first, jumps in the last 30 % of the time.
    * **Optimiser** of stage 2: on a CPU Muon inside the network (docs/results.md); on a GPU, where that was not
      measured, AdamW alone.
    """
    *smaller, largest = SIZES
    size = next((size for size in smaller if facts.crisp[size] >= 0.9), largest)
    if size == largest and facts.masks > MOST_LARGE:
        size = smaller[-1]
    init = "" if size == smaller[0] else "icons256" if size == largest else "icons"
    beside = "auto"
    if init and facts.from_geometry:
        init, beside = "geometry", init if size == largest else "auto"
    versions = max(1, min(24, 8192 // max(1, facts.masks))) if facts.from_geometry else 1
    quarter = max(1, facts.masks * versions // 4)
    batch = max(16, min(512 if facts.on_gpu else 64 if init else 128, 1 << (quarter.bit_length() - 1)))
    data = DataCfg(FolderSource(folder), image_size=size, batch_size=batch, augment=AugmentCfg(versions=versions))
    train = TrainerCfg(max_steps=ENDLESS, val_every=500, quality=0, devices=1)
    tokens = next(limit for limit in (16, 32, 64) if facts.tokens <= limit or limit == 64)
    backbone = SMALL_UNET
    if facts.on_gpu:
        backbone = UNetCfg(width=96, multipliers=(1, 2, 2), blocks=2, attention_sizes=(8, 4))
    time = trained(minutes) - (0 if init else STAGE_1 * minutes)
    stage_2 = Stage2Cfg(
        init=init, autoencoder=beside, data=data, backbone=backbone, text=TextCfg(max_tokens=tokens),
        sampler=TRAJECTORY, optim=ADAMW if facts.on_gpu else MUON, ema=EMACfg(0.998, 0.998),
        train=replace(train, max_minutes=time),
    )  # fmt: skip
    if init:
        return None, stage_2
    factor = size // (16 if facts.on_gpu else 8)
    channels, multipliers = {2: (4, (2, 4)), 4: (2, (1, 4, 8))}[factor]
    autoencoder = AutoencoderCfg(latent_channels=channels, width=16, multipliers=multipliers, regulariser=KLCfg(1e-2))
    stage_1 = Stage1Cfg(
        data=data, autoencoder=autoencoder, optim=OptimCfg(lr=2e-3), ema=0.99,
        train=replace(train, max_minutes=STAGE_1 * minutes),
    )  # fmt: skip
    return stage_1, stage_2
