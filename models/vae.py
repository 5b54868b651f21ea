"""A small convolutional VAE whose decoder answers logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.autoencoder_cfg import AutoencoderCfg
from models.blocks import ResBlock
from models.norm import GroupNorm
from models.resampling import NearestConv

FEATURE_FLOOR = 1e-4
PROBABILITY_SCALE = 4.0  # a pixel that flips counts like a feature that changes wholly
LOGVAR_RANGE = (-20.0, 10.0)  # exp() of more, or of less, is of no use and can overflow


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents: mean and logvar [B,Cz,h,w]."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + standard deviation * noise, all [B,Cz,h,w]."""
        return torch.addcmul(self.mean, (0.5 * self.logvar).exp(), noise)


class VAE(nn.Module):
    """Encoder and decoder of residual blocks; the size halves at each entry of ``cfg.multipliers`` after the first.

    With ``cfg.patch`` the first convolution reads squares of pixels as channels, and the last one answers such (the
    sub-pixel convolution of Shi et al., CVPR 2016, arXiv 1609.05158), so that none runs at the image's full size.
    """

    def __init__(self, cfg: AutoencoderCfg, image_channels: int) -> None:
        super().__init__()
        self.patch = cfg.patch
        widths = [cfg.width * m for m in cfg.multipliers]
        places = cfg.patch**2 * image_channels
        encoder: list[nn.Module] = [nn.Conv2d(places, widths[0], 3, padding=1)]
        for level, wide in enumerate(widths):
            if level:
                encoder.append(nn.Conv2d(widths[level - 1], wide, 3, stride=2, padding=1))
            encoder += [ResBlock(wide, wide) for _ in range(cfg.blocks)]
        encoder += [GroupNorm(widths[-1], act=True), nn.Identity(), nn.Conv2d(widths[-1], 2 * cfg.latent_channels, 1)]

        decoder: list[nn.Module] = [nn.Conv2d(cfg.latent_channels, widths[-1], 3, padding=1)]
        for level in reversed(range(len(widths))):
            decoder += [ResBlock(widths[level], widths[level]) for _ in range(cfg.blocks)]
            if level:
                decoder += [nn.Identity(), NearestConv(widths[level], widths[level - 1])]
        decoder += [GroupNorm(widths[0], act=True), nn.Identity(), nn.Conv2d(widths[0], places, 3, padding=1)]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)

    def squares(self, x: Tensor) -> Tensor:
        """x [B,C,H,W] as the encoder reads it, each square's pixels beside each other: [B,C*p*p,H/p,W/p]."""
        return F.pixel_unshuffle(x, self.patch)

    def encode(self, x: Tensor) -> Posterior:
        """x [B,C,H,W] in [0,1] -> posterior with mean and clamped logvar [B,Cz,h,w], in fp32."""
        mean, logvar = self.encoder(self.squares(2 * x - 1)).float().chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, z: Tensor) -> Tensor:
        """z [B,Cz,h,w] -> logits [B,C,H,W], in fp32."""
        return F.pixel_shuffle(self.decoder(z), self.patch).float()

    def decoder_features(self, z: Tensor) -> list[Tensor]:
        """z [B,Cz,h,w] -> what each residual block of the decoder answers, of mean square 1 over the channels
        [B,Ci,hi,wi], then the probabilities [B,Cin,H,W], all in fp32.
        """
        found = []
        for layer in self.decoder:
            z = layer(z)
            if isinstance(layer, ResBlock):
                f = z.float()
                found.append(f * (f.square().mean(1, keepdim=True) + FEATURE_FLOOR).rsqrt())
        return [*found, PROBABILITY_SCALE * F.pixel_shuffle(z, self.patch).float().sigmoid()]


    def grow_from(self, small: VAE) -> None:
        """Take over the weights of a network of the same shape whose ``patch`` divides this one's: until it is trained,
        it reads the mean of what was one pixel, and answers all of it alike.
        """
        times, state, last = self.patch // small.patch, small.state_dict(), f"decoder.{len(self.decoder) - 1}"
        state["encoder.0.weight"] = spread(state["encoder.0.weight"], 1, small.patch, times) / times**2
        for name in (f"{last}.weight", f"{last}.bias"):
            state[name] = spread(state[name], 0, small.patch, times)
        self.load_state_dict(state)

    def reading(self) -> dict[str, Tensor]:
        """What decides the latents of flat squares: the encoder's weights, those of a square's places in sum."""
        state = self.encoder.state_dict()
        return state | {"0.weight": state["0.weight"].unflatten(1, (-1, self.patch**2)).sum(2)}


def spread(filters: Tensor, dim: int, patch: int, times: int) -> Tensor:
    """Along ``dim`` squares of ``patch`` places a side, as :func:`torch.nn.functional.pixel_shuffle` orders them, with
    ``times`` by ``times`` places for each.
    """
    squares = filters.unflatten(dim, (-1, patch, patch))
    return squares.repeat_interleave(times, dim + 1).repeat_interleave(times, dim + 2).flatten(dim, dim + 2)


def soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - (2 sum p y + 1) / (sum p + sum y + 1) of each image [B,C,H,W] -> [B].

    Averaging images (not pixels of the batch) keeps small objects visible; an empty mask answered by an empty one is 0.
    """
    p, y = logits.sigmoid().flatten(1), target.flatten(1)
    return 1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)


def mask_loss(logits: Tensor, target: Tensor, dice: float, max_pos_weight: float) -> Tensor:
    """Cross-entropy, foreground weighted by clip(background/foreground, 1, max), plus dice * soft Dice -> scalar."""
    foreground = target.mean()
    pos_weight = ((1 - foreground) / foreground.clamp_min(1e-6)).clamp(1.0, max_pos_weight)
    bce = F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight)
    return bce + dice * soft_dice_loss(logits, target).mean()


def kl_divergence(posterior: Posterior) -> Tensor:
    """KL(N(mean, var) || N(0, 1)) in nats, summed over the latent -> [B] (Kingma & Welling 2014, appendix B)."""
    mean, logvar = posterior.mean, posterior.logvar
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def variance_expansion(posterior: Posterior, weight: float, delta: float, bound: float) -> Tensor:
    """weight * mean of 1/(variance + delta), plus bound * mean of exp(|mean| - 1) -> scalar."""
    reward = 1 / (posterior.logvar.exp() + delta)
    return weight * reward.mean() + bound * (posterior.mean.abs().clamp_max(50.0) - 1).exp().mean()
