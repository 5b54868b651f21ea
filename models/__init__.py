"""Networks. A backbone is built from its config's type; nothing outside assumes a UNet."""

from collections.abc import Callable

from torch import nn

from configs.diffusion_cfg import UNetCfg
from models.unet import WaveletUNet

BACKBONES: dict[type, Callable[..., nn.Module]] = {UNetCfg: WaveletUNet}


def build_backbone(
    cfg: object, latent_shape: tuple[int, int, int], text_features: int, text_width: int
) -> nn.Module:
    """The network of ``cfg``: (x [B,C,h,w], t [B], dt [B], Condition) -> [B,C,h,w]."""
    return BACKBONES[type(cfg)](cfg, latent_shape, text_features, text_width)
