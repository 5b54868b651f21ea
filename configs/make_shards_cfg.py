"""Writing shards: which data, where to, and how many masks in each."""

from dataclasses import dataclass, field

from configs.checks import positive, require
from configs.data_cfg import DataCfg


@dataclass(frozen=True)
class MakeShardsCfg:
    """Everything that writing shards needs."""

    data: DataCfg = field(default_factory=DataCfg)
    """The masks, in the size at which they are stored; source, size and channels count."""
    out: str = ""
    """The folder to make."""
    samples: int = 2000
    """Masks in a shard; every loader process of a training needs a shard of its own."""

    def __post_init__(self) -> None:
        positive("samples", self.samples)
        require(self.data.limit == 0, "data.limit", self.data.limit, "0 here: give it to the training")
