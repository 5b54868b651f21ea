"""Where masks and prompts come from, their size, augmentation and split."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import subcommand

from configs.checks import fraction, non_negative, one_of, positive, require


@dataclass(frozen=True)
class EmbeddedSource:
    """A data set that ships in ``data/``."""

    name: Literal["animals32", "icons64", "collages64"] = "animals32"
    """animals32: 8,716 silhouettes of ten animals; icons64: 28,046 captioned solid icons; collages64: 22,000 pictures
    of pieces of these icons with captions of geometry, made when they are read (half a minute)."""


@dataclass(frozen=True)
class FolderSource:
    """A folder of image files with metadata.jsonl/.csv, .txt sidecars, class subfolders, or no captions at all."""

    train: str = "my_masks/train"
    """Folder with the training masks, searched at any depth."""
    test: str = ""
    """Folder with the held-out masks; empty: a frozen share of the training folder is held out."""
    default_prompt: str = "Binary Mask"
    """Prompt of a mask that has no caption of its own."""
    max_bad: float = 0.1
    """Largest share of unreadable images that is skipped, with one warning each; beyond it training does not start."""

    def __post_init__(self) -> None:
        require(bool(self.train.strip()), "data.source.train", self.train, "the path of a folder with masks")
        fraction("data.source.max_bad", self.max_bad)


@dataclass(frozen=True)
class MnistSource:
    """torchvision's MNIST as masks, with prompts such as "a seven"."""

    root: str = "data/mnist"
    """Folder that holds (or will hold) torchvision's MNIST files."""
    download: bool = False
    """Let torchvision download the files when they are missing."""


@dataclass(frozen=True)
class ShardSource:
    """WebDataset shards: tar files of images with .txt captions, larger than memory or disk (scripts.make_shards)."""

    train: str = "my_shards"
    """Folder of tar files (train-*.tar, else all), a pattern such as masks-{0000..0127}.tar, or such addresses
    (https, s3, gs); several joined by ::"""
    test: str = ""
    """The same for held-out masks; empty: test-*.tar of the training folder, else a share frozen by content."""
    default_prompt: str = "Binary Mask"
    """Prompt of a mask that has no caption of its own."""
    max_bad: float = 0.1
    """Largest share of unusable samples that is skipped, with one warning each; beyond it training stops."""
    shuffle: int = 5000
    """Samples, as they are stored, that each loader process holds to hand out in random order."""
    memory: int = 20000
    """Masks that are read into memory first: held-out ones, and those that samples and latents are measured by."""

    def __post_init__(self) -> None:
        require(bool(self.train.strip()), "data.source.train", self.train, "a folder, pattern or address of tar files")
        fraction("data.source.max_bad", self.max_bad)
        positive("data.source.shuffle", self.shuffle)
        require(self.memory >= 2, "data.source.memory", self.memory, "at least 2")


Source = (
    Annotated[EmbeddedSource, subcommand("embedded")]
    | Annotated[FolderSource, subcommand("folder")]
    | Annotated[MnistSource, subcommand("mnist")]
    | Annotated[ShardSource, subcommand("shards")]
)


@dataclass(frozen=True)
class AugmentCfg:
    """Random changes of a training mask; the result is binary again after each of them."""

    hflip: float = 0.0
    """Probability of a left-right flip."""
    vflip: float = 0.0
    """Probability of an up-down flip."""
    rot90: float = 0.0
    """Probability of a rotation by a random multiple of 90 degrees."""
    affine: float = 0.0
    """Probability of a random shift, scale and rotation."""
    shift: float = 0.05
    """Largest shift of the affine change, as a share of the image size."""
    scale: float = 0.1
    """Largest relative change of size of the affine change."""
    rotate: float = 10.0
    """Largest rotation of the affine change, in degrees."""
    elastic: float = 0.0
    """Probability of an elastic deformation."""
    versions: int = 1
    """Make so many of each training mask before training: itself, and others resized and moved within the frame, with
    captions of geometry made anew. For a few masks (not shards, RGB images); their latents can be cached."""

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "rot90", "affine", "elastic"):
            fraction(f"data.augment.{name}", getattr(self, name))
        positive("data.augment.versions", self.versions)
        fraction("data.augment.shift", self.shift)
        fraction("data.augment.scale", self.scale, below_one=True)
        non_negative("data.augment.rotate", self.rotate)

    @property
    def is_none(self) -> bool:
        """True when no transform can change a mask."""
        return not (self.hflip or self.vflip or self.rot90 or self.affine or self.elastic)

    @property
    def only_hflip(self) -> bool:
        """True when a mask has at most two variants (as is, mirrored), so that its latents can be cached."""
        return not (self.vflip or self.rot90 or self.affine or self.elastic)


@dataclass(frozen=True)
class DataCfg:
    """Data of either stage."""

    source: Source = field(default_factory=EmbeddedSource)
    """Where masks and prompts come from."""
    image_size: int = 32
    """Height and width in pixels that the networks see; files of other sizes are fitted and padded."""
    channels: Literal[1, 3] = 1
    """1: binary masks; 3: ordinary RGB images."""
    augment: AugmentCfg = field(default_factory=AugmentCfg)
    """Augmentation of the training split; the held-out split is never augmented."""
    val_fraction: float = 0.1
    """Share of the masks that is held out, frozen by the content of each mask."""
    batch_size: int = 128
    """Masks per step and process."""
    workers: int = 0
    """Loader processes; 0 is fastest for data that fits in memory, shards want some."""
    cache_latents: bool = True
    """Stage 2: encode the training split once, when the augmentation allows it."""
    limit: int = 0
    """Use only N training masks (0: all); for quick trials. They are held in memory, also from shards."""

    def __post_init__(self) -> None:
        one_of("data.channels", self.channels, (1, 3))
        require(self.image_size >= 8, "data.image_size", self.image_size, "at least 8 pixels")
        require(0 < self.val_fraction < 1, "data.val_fraction", self.val_fraction, "above 0 and below 1")
        positive("data.batch_size", self.batch_size)
        non_negative("data.workers", self.workers)
        non_negative("data.limit", self.limit)
        if self.augment.versions > 1:
            streams = isinstance(self.source, ShardSource) and not self.limit
            require(self.channels == 1 and not streams, "data.augment.versions", self.augment.versions,
                    "1 for RGB images, and for shards without data.limit")
