"""An ``AutoencoderKL`` of diffusers with the interface of :class:`~models.vae.VAE`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from configs.autoencoder_cfg import ImportedCfg
from models.vae import FEATURE_FLOOR, LOGVAR_RANGE, PROBABILITY_SCALE, VAE, Posterior

EDGE = 1e-4  # probabilities come no nearer to 0 and 1, where logits have no end


def autoencoder_kl() -> Any:
    """diffusers' class. Raises ModuleNotFoundError with what to install."""
    if find_spec("diffusers") is None:
        raise ModuleNotFoundError("this autoencoder is one of diffusers, which is not installed: run "
                                  '.venv/bin/python -m pip install "diffusers>=0.36,<1"')  # fmt: skip
    from diffusers import AutoencoderKL

    return AutoencoderKL


class ImportedVAE(VAE):
    """Masks [B,1,H,W] go in as grey images of as many channels as it takes; the mean of its channels is the mask."""

    def __init__(self, cfg: ImportedCfg, image_channels: int) -> None:
        nn.Module.__init__(self)
        self.patch = 1
        self.net = autoencoder_kl().from_config(json.loads(cfg.config))
        self.image_channels = image_channels

    def encode(self, x: Tensor) -> Posterior:
        """x [B,C,H,W] in [0,1] -> posterior with mean and clamped logvar [B,Cz,h,w], in fp32."""
        wide = (2 * x - 1).expand(-1, self.net.config.in_channels, -1, -1)
        found = self.net.encode(wide).latent_dist
        return Posterior(found.mean.float(), found.logvar.float().clamp(*LOGVAR_RANGE))

    def decode(self, z: Tensor) -> Tensor:
        """z [B,Cz,h,w] -> logits [B,C,H,W], in fp32; their sigmoid is its image, from [-1,1] to [0,1]."""
        p = self.net.decode(z).sample.float() / 2 + 0.5
        if self.image_channels == 1:
            p = p.mean(1, keepdim=True)
        return p.clamp(EDGE, 1 - EDGE).logit()

    def decoder_features(self, z: Tensor) -> list[Tensor]:
        """See :meth:`VAE.decoder_features`; here after each level of the decoder."""
        found: list[Tensor] = []

        def keep(module: nn.Module, given: Any, answer: Tensor) -> None:
            f = answer.float()
            found.append(f * (f.square().mean(1, keepdim=True) + FEATURE_FLOOR).rsqrt())

        decoder = self.net.decoder
        hooks = [part.register_forward_hook(keep) for part in (decoder.mid_block, *decoder.up_blocks)]
        try:
            p = self.decode(z).sigmoid()
        finally:
            for hook in hooks:
                hook.remove()
        return [*found, PROBABILITY_SCALE * torch.clamp(p, 0, 1)]

    def reading(self) -> dict[str, Tensor]:
        """See :meth:`VAE.reading`."""
        return dict(self.net.state_dict())
