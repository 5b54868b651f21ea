"""DDIM (Song et al. 2021): DDPM's training, with any share of its noise while sampling."""

from typing import ClassVar

from configs.sampler_cfg import DDIMCfg
from samplers.ddpm import DDPM


class DDIM(DDPM):
    """Deterministic at ``eta = 0``, DDPM itself at ``eta = 1`` (Song et al. 2021, eq. 16)."""

    name: ClassVar[str] = "ddim"
    cfg: DDIMCfg

    def __init__(self, cfg: DDIMCfg) -> None:
        super().__init__(cfg)
        self.eta = cfg.eta
