"""Networks. A backbone or autoencoder is built from its config's type; nothing outside assumes a UNet."""

from collections.abc import Callable

from configs.autoencoder_cfg import AutoencoderCfg, ImportedCfg
from configs.backbone_cfg import BackboneCfg, DiTCfg, UNetCfg
from models.backbone import Backbone
from models.dit import DiT
from models.imported_vae import ImportedVAE
from models.unet import WaveletUNet
from models.vae import VAE

BACKBONES: dict[type[BackboneCfg], Callable[..., Backbone]] = {UNetCfg: WaveletUNet, DiTCfg: DiT}
VAES: dict[type[AutoencoderCfg], Callable[..., VAE]] = {AutoencoderCfg: VAE, ImportedCfg: ImportedVAE}


def build_backbone(
    cfg: BackboneCfg, latent_shape: tuple[int, int, int], text_features: int, text_width: int
) -> Backbone:
    """The network of ``cfg``: (x [B,C,h,w], t [B], dt [B], Condition) -> [B,C,h,w]."""
    return BACKBONES[type(cfg)](cfg, latent_shape, text_features, text_width)


def build_vae(cfg: AutoencoderCfg, image_channels: int) -> VAE:
    """The autoencoder of ``cfg`` for images of 1 or 3 channels."""
    return VAES[type(cfg)](cfg, image_channels)
