"""Networks. A backbone is built from its config's type; nothing outside assumes a UNet."""

from collections.abc import Callable

from torch import nn

from configs.backbone_cfg import BackboneCfg, DiTCfg, UNetCfg
from models.dit import DiT
from models.unet import WaveletUNet

BACKBONES: dict[type[BackboneCfg], Callable[..., nn.Module]] = {UNetCfg: WaveletUNet, DiTCfg: DiT}


def build_backbone(
    cfg: BackboneCfg, latent_shape: tuple[int, int, int], text_features: int, text_width: int
) -> nn.Module:
    """The network of ``cfg``: (x [B,C,h,w], t [B], dt [B], Condition) -> [B,C,h,w]."""
    return BACKBONES[type(cfg)](cfg, latent_shape, text_features, text_width)
