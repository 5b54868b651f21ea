"""Looking at a folder of masks before training: which folder, and the options that training would get."""

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from configs.data_cfg import DataCfg, FolderSource
from configs.diffusion_cfg import TextCfg


@dataclass(frozen=True)
class CheckDataCfg:
    """A folder, read as a training with these options would read it."""

    path: Positional[str]
    """The folder with the training masks."""
    test: str = ""
    """Folder with the held-out masks, as in --data.source.test."""
    image_size: int = 64
    """As in --data.image-size."""
    channels: Literal[1, 3] = 1
    """As in --data.channels."""
    default_prompt: str = FolderSource.default_prompt
    """As in --data.source.default-prompt."""
    max_bad: float = FolderSource.max_bad
    """As in --data.source.max-bad."""
    max_tokens: int = TextCfg.max_tokens
    """As in --text.max-tokens."""

    def __post_init__(self) -> None:
        _ = self.data, self.text  # raise for values that no training takes

    @property
    def source(self) -> FolderSource:
        return FolderSource(self.path, self.test, self.default_prompt, self.max_bad)

    @property
    def data(self) -> DataCfg:
        return DataCfg(self.source, image_size=self.image_size, channels=self.channels)

    @property
    def text(self) -> TextCfg:
        return TextCfg(max_tokens=self.max_tokens)
