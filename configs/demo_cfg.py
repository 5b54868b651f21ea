"""The page: which model it shows, where it listens, and how much one visitor may ask for."""

from dataclasses import dataclass
from typing import Literal

from configs.checks import positive, require


@dataclass(frozen=True)
class DemoCfg:
    """Everything that the page needs."""

    checkpoint: str = "icons"
    """A model that comes with the project (icons, icons256, animals, geometry), or the path of a stage-2 checkpoint or
    export."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is for this machine alone."""
    port: int = 7860
    """Port to listen on."""
    browser: bool = True
    """Open the page in this machine's browser."""
    share: bool = False
    """Also make the page reachable from everywhere for a week, over a tunnel of Gradio's."""
    most_masks: int = 64
    """Masks that may be asked for at once."""
    most_letters: int = 200
    """Length of a prompt."""
    queue: int = 8
    """Visitors that may wait; one at a time is served."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """What to run on; auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        require(bool(self.checkpoint.strip()), "checkpoint", self.checkpoint, "the path of a stage-2 checkpoint")
        require(1 <= self.port <= 65535, "port", self.port, "from 1 to 65535")
        for name in ("most_masks", "most_letters", "queue"):
            positive(name, getattr(self, name))
