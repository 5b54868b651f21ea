"""Stage 1: a VAE of masks, its losses, and the normalised latent space that stage 2 works in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.autoencoder_cfg import KLCfg, L1LossCfg, MaskLossCfg, Stage1Cfg, VarianceExpansionCfg
from configs.cli import from_dict, to_dict
from models.checkpoint import describe, read_checkpoint, whole
from models.codec import Autoencoder
from models.critic import PatchCritic, criticised, lpips, lpips_error
from models.ema import ema_update_, warmed_decay
from models.equivariance import random_change
from models.export import KEY, with_twins
from models.optim import build_optimizer, repeatable
from models.sharding import shard_parts
from models.vae import VAE, Posterior, kl_divergence, mask_loss, variance_expansion

MAKE = "bash scripts/train_stage_1.sh"


def image_loss(cfg: L1LossCfg, p: Tensor, target: Tensor) -> Tensor:
    """Of images [B,C,H,W] in [0,1] -> scalar."""
    error = F.l1_loss(p, target)
    return error + cfg.lpips * lpips_error(cfg.lpips_network, p, target) if cfg.lpips else error


# loss config -> (logits, target) -> scalar
RECONSTRUCTION: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    MaskLossCfg: lambda cfg, logits, x: mask_loss(logits, x, cfg.dice, cfg.max_pos_weight),
    L1LossCfg: lambda cfg, logits, x: image_loss(cfg, logits.sigmoid(), x),
}
# regulariser config -> (posterior, number of pixels) -> scalar
REGULARISERS: dict[type, Callable[[Any, Posterior, int], Tensor]] = {
    KLCfg: lambda cfg, posterior, pixels: cfg.weight * kl_divergence(posterior).mean() / pixels,
    VarianceExpansionCfg: lambda cfg, posterior, pixels: variance_expansion(
        posterior, cfg.weight, cfg.delta, cfg.bound
    ),
}


class AutoencoderModule(Autoencoder, L.LightningModule):
    """The training of an :class:`models.codec.Autoencoder`."""

    used: float = 0.0
    """Share of the training's time limit that is over (see ``StepRoutine``)."""

    def __init__(self, cfg: Stage1Cfg, data: str = "") -> None:
        super().__init__(cfg, data)
        if cfg.init:
            self.vae.encoder.requires_grad_(False)  # its latents stay as they are
        self.critic: PatchCritic | None = None  # only while it trains, where its loss asks for one

    def with_judges(self) -> AutoencoderModule:
        """Itself, with the networks that its loss asks for. Raises ConfigError where the file of one is missing."""
        loss = self.cfg.autoencoder.loss
        if isinstance(loss, L1LossCfg) and loss.lpips:
            lpips(loss.lpips_network)
        if self.cfg.autoencoder.has_critic:
            self.critic = PatchCritic(self.cfg.data.channels)
        return self

    def grow_from(self, source: Autoencoder) -> None:
        """Begin with the averaged weights and the latents of an autoencoder of smaller images (see VAE.grow_from)."""
        for vae in (self.vae, self.average):
            vae.grow_from(source.average)
        self.latent_mean.copy_(source.latent_mean)
        self.latent_std.copy_(source.latent_std)

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # only ModelParallelStrategy sets one
            for vae in (self.vae, self.average):
                shard_parts([vae.encoder, vae.decoder], self.device_mesh)

    @torch.no_grad()
    def measure_latents(self, batches: Iterable[Tensor]) -> None:
        """Set ``latent_mean`` and ``latent_std`` to the moments of posterior samples of the images [B,C,H,W]."""
        count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for x in batches:
            posterior = self.average.encode(x.to(self.latent_mean.device))
            mean, variance = posterior.mean.cpu().double(), posterior.logvar.cpu().double().exp()  # MPS has no float64
            total = total + mean.sum(dim=(0, 2, 3))
            squares = squares + (mean.square() + variance).sum(dim=(0, 2, 3))
            count += mean.shape[0] * mean.shape[2] * mean.shape[3]
        if not count:
            raise ValueError("the latent statistics need at least one image, and there was none")
        mean = total / count
        self.latent_mean.copy_(mean.reshape(self.latent_mean.shape))
        self.latent_std.copy_((squares / count - mean.square()).clamp_min(1e-12).sqrt().reshape(self.latent_std.shape))

    def losses(self, vae: VAE, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor, Posterior]:
        """x [B,C,H,W] -> loss, its parts, logits [B,C,H,W] and the posterior."""
        cfg = self.cfg.autoencoder
        posterior = vae.encode(x)
        z, target = posterior.sample(torch.randn_like(posterior.mean)), x
        if self.training and cfg.equivariance > 0 and float(torch.rand(())) < cfg.equivariance:
            change = random_change(z.shape[-1])
            z, target = change(z), change(x, cfg.factor)
        logits = vae.decode(z)
        reconstruction = RECONSTRUCTION[type(cfg.loss)](cfg.loss, logits, target)
        regulariser = REGULARISERS[type(cfg.regulariser)](cfg.regulariser, posterior, x[0].numel())
        parts = {"reconstruction": reconstruction.detach(), "regulariser": regulariser.detach()}
        return reconstruction + regulariser, parts, logits, posterior

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        x, judge = batch["image"], self.cfg.autoencoder.loss
        loss, parts, logits, _ = self.losses(self.vae, x)
        if self.critic is not None and isinstance(judge, L1LossCfg):
            began = max(self.global_step / self.cfg.train.max_steps, self.used) >= judge.critic_begin
            last: Any = self.vae.decoder[-1].weight
            more = criticised(self.critic, x, logits.sigmoid(), loss, last, judge.critic if began else 0.0)
            loss = loss + more["critic"] + more["deceived"]
            parts = parts | {name: value.detach() for name, value in more.items()}
        self.log_dict({"loss": loss.detach()} | parts, prog_bar=True)
        return {"loss": loss} | parts

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The loss of the averaged network on held-out masks, with the same noise at every validation."""
        x = batch["image"]
        with repeatable(self.device, self.cfg.train.seed, 0, self.global_rank, batch_idx):
            loss, _, _, posterior = self.losses(self.average, x)
        p = self.average.decode(posterior.mean).sigmoid()
        scores = {
            "val/loss": loss,
            "val/l1": (p - x).abs().mean(),
            "val/posterior_std": (0.5 * posterior.logvar).exp().mean(),
            "val/latent_std": posterior.mean.std(),
        }
        self.log_dict(scores, batch_size=len(x), sync_dist=True)
        return {"image": x, "reconstruction": p}  # for the callbacks that score and draw

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        ema_update_(self.average, self.vae, warmed_decay(self.cfg.ema, self.global_step))

    def configure_optimizers(self) -> Any:
        trained = self.vae if self.critic is None else torch.nn.ModuleList([self.vae, self.critic])
        return build_optimizer(trained, self.cfg.optim, self.cfg.train.max_steps, lambda: self.used)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = describe("autoencoder", to_dict(self.cfg), complete=self.complete, data=self.data)


def load_autoencoder(path: str | Path, make: str = MAKE) -> AutoencoderModule:
    """The autoencoder of a checkpoint of either stage, frozen and in eval mode. Raises CheckpointError."""
    content = read_checkpoint(path, "autoencoder", make, also="diffusion")
    with whole(path, make):
        return autoencoder_of(content)


def autoencoder_of(content: Mapping[str, Any]) -> AutoencoderModule:
    """Of a checkpoint of either stage, as it was read; frozen and in eval mode."""
    about, state = content[KEY], content["state_dict"]
    if about["kind"] == "diffusion":
        own = "autoencoder."
        every = with_twins({name: value for name, value in state.items() if name.startswith(own)})
        state = {name.removeprefix(own): value for name, value in every.items()}
        module = AutoencoderModule(from_dict(Stage1Cfg, about["autoencoder"]))
        module.complete = True
    else:
        state = {name: value for name, value in state.items() if not name.startswith("critic.")}
        module = AutoencoderModule(from_dict(Stage1Cfg, about["config"]), about["data"])
        module.complete = about["complete"]
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)
