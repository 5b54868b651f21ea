"""Taking an autoencoder of diffusers as stage 1: which one, and for which data."""

from collections.abc import Callable
from dataclasses import dataclass, field

from configs.data_cfg import DataCfg
from configs.presets import STAGE_1


@dataclass(frozen=True)
class ImportCfg:
    """Everything that an import needs."""

    vae: str = ""
    """Folder of an AutoencoderKL that diffusers has saved (config.json and safetensors), or its Hugging Face name."""
    data: DataCfg = field(default_factory=DataCfg)
    """The masks that stage 2 will be trained on; their latents are measured here."""
    runs: str = "runs"
    """Folder in which the import gets a run folder of its own."""
    run_dir: str = ""
    """That folder; empty: a new one under runs/."""


def _of(name: str) -> Callable[[], ImportCfg]:
    return lambda: ImportCfg(data=STAGE_1[name]().data)


IMPORTS: dict[str, Callable[[], ImportCfg]] = {name: _of(name) for name in STAGE_1}
