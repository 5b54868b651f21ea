"""Writing a training's report anew."""

from dataclasses import dataclass

from tyro.conf import Positional

from configs.checks import require


@dataclass(frozen=True)
class ReportCfg:
    """Which training."""

    run: Positional[str]
    """Run folder of a training."""

    def __post_init__(self) -> None:
        require(bool(self.run.strip()), "run", self.run, "the run folder of a training")
