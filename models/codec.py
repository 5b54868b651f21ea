"""The autoencoder as stage 2 and generation use it: masks to normalised latents and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from configs.autoencoder_cfg import Stage1Cfg
from models import build_vae
from models.ema import frozen_twin
from models.vae import Posterior

ROUNDED = 2**-8  # on average an export in bfloat16 is nearer to what it was


class Autoencoder(nn.Module):
    """The VAE and its averaged twin; ``to_latent`` and ``to_pixels`` are what stage 2 uses.

    ``latent_mean`` and ``latent_std`` [Cz,1,1] are measured over the training set when training ends.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, cfg: Stage1Cfg, data: str = "") -> None:
        super().__init__()
        self.cfg = cfg
        self.data = data  # fingerprint of the data set
        self.complete = False  # whether training ended as planned
        self.vae = build_vae(cfg.autoencoder, cfg.data.channels)
        self.average = frozen_twin(self.vae)
        shape = (cfg.autoencoder.latent_channels, 1, 1)
        self.register_buffer("latent_mean", torch.zeros(shape))
        self.register_buffer("latent_std", torch.ones(shape))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(Cz, h, w) of one image's latent."""
        side = self.cfg.data.image_size // self.cfg.autoencoder.factor
        return self.cfg.autoencoder.latent_channels, side, side

    def posterior(self, x: Tensor) -> Posterior:
        """x [B,C,H,W] in [0,1] -> posterior of the normalised latent, [B,Cz,h,w]."""
        raw = self.average.encode(x)
        return Posterior((raw.mean - self.latent_mean) / self.latent_std, raw.logvar - 2 * self.latent_std.log())

    def to_latent(self, x: Tensor) -> Tensor:
        """x [B,C,H,W] in [0,1] -> mean of its latent, normalised per channel, [B,Cz,h,w]."""
        return self.posterior(x).mean

    def to_pixels(self, z: Tensor) -> Tensor:
        """Normalised latent [B,Cz,h,w] -> logits [B,C,H,W]; undoes the normalisation of :meth:`to_latent` exactly."""
        return self.average.decode(z * self.latent_std + self.latent_mean)

    def shares_latents(self, other: Autoencoder) -> bool:
        """Whether a network that draws latents of ``other`` draws latents of this one: one has grown from the other."""
        one, two = ({"mean": own.latent_mean, "std": own.latent_std} | own.average.reading() for own in (self, other))
        return self.latent_shape == other.latent_shape and one.keys() == two.keys() and all(
            value.shape == two[name].shape and (value - two[name]).abs().mean() <= ROUNDED * value.abs().mean()
            for name, value in one.items()
        )

    def perceptual_error(self, answer: Tensor, wanted: Tensor) -> Tensor:
        """Error [B] of normalised latents [B,Cz,h,w] in the decoder's features; ``wanted`` gets no gradient.

        Latents differ in ways that decode alike, and by little where a mask gains or loses a piece; the decoder knows
        which is which (Berrada et al., ICLR 2025, arXiv 2411.04873).
        """
        ours = self.average.decoder_features(answer * self.latent_std + self.latent_mean)
        with torch.no_grad():
            theirs = self.average.decoder_features(wanted * self.latent_std + self.latent_mean)
        return torch.stack([(a - b).square().flatten(1).mean(1) for a, b in zip(ours, theirs, strict=True)]).mean(0)
