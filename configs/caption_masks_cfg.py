"""Captions from geometry: for which folder, and at which size the masks are looked at."""

from dataclasses import dataclass

from tyro.conf import Positional

from configs.data_cfg import DataCfg, FolderSource


@dataclass(frozen=True)
class CaptionMasksCfg:
    """A folder whose masks get captions."""

    path: Positional[str]
    """The folder with the masks; metadata.jsonl is written into it."""
    image_size: int = 64
    """The --data.image-size of the training: what its pixels cannot show is not said."""
    overwrite: bool = False
    """Replace the captions that there are, and metadata.jsonl, whose list of masks counts no more: all images of the
    folder are captioned; otherwise only masks without a caption get one."""

    def __post_init__(self) -> None:
        _ = self.data  # raises for values that no training takes

    @property
    def data(self) -> DataCfg:
        return DataCfg(FolderSource(self.path), image_size=self.image_size)
