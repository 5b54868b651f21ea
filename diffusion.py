"""Stage 2: a text-conditioned network in the latent space of a frozen autoencoder, trained and sampled by a sampler."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from autoencoder import AutoencoderModule
from configs.autoencoder_cfg import Stage1Cfg
from configs.cli import from_dict, to_dict
from configs.diffusion_cfg import Stage2Cfg
from metrics.geometry import describe as describe_masks
from metrics.geometry import numbers
from metrics.grammar import WORDS, parse
from models import build_backbone
from models.band_loss import BandLoss
from models.checkpoint import describe, read_checkpoint, whole
from models.ema import cast_once, ema_update_, frozen_twin, warmed_decay
from models.export import KEY, MAKE, with_twins
from models.folded import folded_once
from models.latent_critic import LatentCritic, contest
from models.optim import Rival, build_optimizer, repeatable
from models.reader import Reader, agreement
from models.sharding import shard_parts
from models.sketch import CELL, looked_at, rough_sketch
from models.steps import logs_after
from models.text import Condition, TextEncoder
from models.vae import Posterior
from samplers import Sampler, When, build_sampler
from samplers.base import mean_squared_error
from samplers.generates import Generates
from samplers.guidance import Guidance


class DiffusionModule(Generates, L.LightningModule):
    """The network, two averaged twins (one generates, one teaches), the frozen autoencoder, and a sampler.

    The frozen text encoder is no part of the module: it is loaded by name and belongs to no checkpoint.
    """

    def __init__(self, cfg: Stage2Cfg, autoencoder: AutoencoderModule, data: str = "") -> None:
        super().__init__()
        self.cfg = cfg
        self.data = data  # fingerprint of the data set
        self.complete = False  # whether training ended as planned
        self.used = 0.0  # share of the time limit that is over (see StepRoutine)
        self.parts: dict[str, Tensor] = {}  # of the loss, as they were last in this interval
        self.sampler: Sampler = build_sampler(cfg.sampler)
        self.encode_text = TextEncoder(cfg.text)
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.net = build_backbone(cfg.backbone, self.latent_shape, self.encode_text.features, cfg.text.width)
        self.average = frozen_twin(self.net)
        self.teacher = frozen_twin(self.net)
        if cfg.sketch.only:
            self.net.requires_grad_(False)
            assert self.net.sketch is not None  # what begins or goes on such a training sees to that
            self.net.sketch.requires_grad_(True)
        self.reader = None
        if cfg.reader.width:
            self.reader = Reader(self.latent_shape, [len(words) for words in WORDS], cfg.reader.width)
            self.reader.requires_grad_(cfg.reader.only)
        if cfg.reader.only:
            self.net.requires_grad_(False)
        self.critic: LatentCritic | None = None  # only while it trains
        self.measure = mean_squared_error if cfg.sampler.bands == "none" else BandLoss(
            self.latent_shape, cfg.sampler.band_levels, cfg.sampler.bands
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(Cz, h, w) of one mask's latent."""
        return self.autoencoder.latent_shape

    def example_inputs(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Condition]:
        """Inputs of the network for a batch of ``rows``, for timing it."""
        times, cond = torch.rand(rows), self.encode_text(["a prompt"] * rows)
        if self.net.sketch is not None:
            side = min(self.autoencoder.cfg.data.image_size, CELL * self.latent_shape[-1])
            cond = replace(cond, sketch=torch.rand(rows, 1, side, side).round())
        return torch.randn(rows, *self.latent_shape), times, times, cond

    def begin_with(self, source: DiffusionModule) -> None:
        """Take over the averaged weights of ``source``, but for an encoder of sketches that only one of the two has."""
        for twin in (self.net, self.average, self.teacher):
            own = twin.state_dict()
            given = {name: value for name, value in source.average.state_dict().items() if name in own}
            twin.load_state_dict({name: value for name, value in own.items() if name.startswith("sketch.")} | given)
        if self.reader is not None and source.reader is not None:
            self.reader.load_state_dict(source.reader.state_dict())

    def with_critic(self) -> DiffusionModule:
        """Itself, with the critic that its config asks for, which begins with the network's weights."""
        if self.cfg.critic.width:
            self.critic = LatentCritic(self.net, self.cfg.critic.width)
        return self

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # only ModelParallelStrategy sets one
            shard_parts([self.net, self.average, self.teacher], self.device_mesh)

    def train(self, mode: bool = True) -> DiffusionModule:
        """Only the trained network leaves eval mode."""
        super().train(mode)
        for frozen in (self.autoencoder, self.average, self.teacher):
            frozen.eval()
        return self

    def latents(self, batch: dict[str, Any]) -> Tensor:
        """A batch's latents [B,Cz,h,w]: samples from cached moments, or from the frozen encoder's posterior."""
        posterior = self.posterior(batch)
        return posterior.sample(torch.randn_like(posterior.mean))

    def posterior(self, batch: dict[str, Any]) -> Posterior:
        if "moments" in batch:
            return Posterior(*batch["moments"].float().chunk(2, dim=1))
        with torch.no_grad():
            return self.autoencoder.posterior(batch["image"])

    def condition(self, batch: dict[str, Any]) -> Condition:
        """A batch's prompts; where the network reads sketches, with those of some rows' masks."""
        cond = self.encode_text(batch["prompt"], self.device)
        if self.net.sketch is None:
            return cond
        with torch.no_grad():
            share = 1.0 if self.cfg.sketch.only else self.cfg.sketch.share  # a row without would teach it nothing
            shown = torch.rand(len(cond.keep), 1, 1, 1, device=self.device) < share
            masks = looked_at(batch["image"], self.latent_shape[-1])
            return replace(cond, sketch=rough_sketch(masks) * shown)

    def when(self) -> When:
        """Progress is that of the steps, or of the time limit if that is further on."""
        return When(self.global_step, max(self.global_step / self.cfg.train.max_steps, self.used))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        when = self.when()
        if self.critic is not None:
            loss, parts = self.contend(self.critic, batch)
        elif self.reader is not None and self.cfg.reader.only:
            drawn = when.progress >= self.cfg.reader.begin
            steps = self.corrections() if drawn else None
            loss, parts = self.read(self.reader, self.latents(batch), batch["prompt"], steps)
        else:
            loss, parts = self.loss(self.latents(batch), self.condition(batch), when)
        self.log("loss", loss.detach(), prog_bar=True)
        self.parts |= parts  # those of self-consistency are there in every n-th step only
        if logs_after(self.global_step, self.cfg.train):
            self.log_dict({f"train/{name}": value for name, value in self.parts.items()})
            self.parts = {}
        return {"loss": loss} | parts

    def loss(self, x1: Tensor, cond: Condition, when: When) -> tuple[Tensor, dict[str, Tensor]]:
        """The sampler's loss of the trained network on latents x1 [B,Cz,h,w] with B prompts, and its parts."""
        with ExitStack() as ready:
            if self.sampler.asks_teacher(when):
                ready.enter_context(cast_once(self.teacher))
                ready.enter_context(folded_once(self.teacher))
            return self.sampler.loss(
                self.net, x1, cond, teacher=self.teacher, when=when, measure=self.measure,
                perceptual=self.autoencoder.perceptual_error,
            )

    def contend(self, critic: LatentCritic, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the single step and its critic learn from each other, and its parts (see ``contest``); with an anchor,
        what it learns from the model that it began with, too (knowledge distillation, Luhman & Luhman 2021, arXiv
        2101.02388; beside a critic, Sauer et al. 2023, arXiv 2311.17042).
        """
        cfg, real, cond = self.cfg.critic, self.posterior(batch).mean, self.condition(batch)
        if self.cfg.sampler.condition_drop > 0:
            cond = cond.drop(torch.rand(len(real), device=self.device) < self.cfg.sampler.condition_drop)
        noise, heard = torch.randn_like(real), self.global_step >= cfg.alone
        drawn = self.drawn(self.net, noise, cond)
        loss, parts = contest(
            critic, real, drawn, cond, times=(cfg.earliest, cfg.latest), mismatched=cfg.mismatched, heard=heard
        )
        if not (heard and cfg.anchor):
            return loss, parts
        with torch.no_grad(), cast_once(self.teacher), folded_once(self.teacher):
            wanted = self.drawn(self.teacher, noise, cond, cfg.anchor_steps)
        far = mean_squared_error(drawn, wanted).mean()
        return loss + cfg.anchor * far, parts | {"anchor": far.detach()}

    def drawn(self, net: torch.nn.Module, noise: Tensor, cond: Condition, steps: int = 1) -> Tensor:
        """Latents [B,Cz,h,w] that a network draws from noise, without any further guidance."""
        times = torch.linspace(0, 1, steps + 1).tolist()
        return self.sampler.walk(self.sampler.reading(net), noise, times, cond, Guidance(), torch.randn_like)

    def read(
        self, reader: Reader, x1: Tensor, prompts: list[str], steps: int | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the reader misses in latents x1 [B,Cz,h,w]; unless ``steps`` is None, in half of them and in as many as
        they are that the network draws in one step for the B prompts, corrected in so many steps: an error, and its
        parts.
        """
        asked = self.asked(prompts)
        if steps is None:
            error = reader.error(x1, asked)
            return error, {"reader": error.detach()}
        with torch.no_grad():
            z = self.drawn(self.average, torch.randn_like(x1), self.encode_text(prompts, self.device))
            z = reader.corrected(z, asked, steps)
            masks = self.autoencoder.to_pixels(z) > 0
        shown = numbers(describe_masks(masks.cpu())).to(self.device)
        real = math.ceil(len(x1) / 2)
        error = reader.error(torch.cat([x1[:real], z]), torch.cat([asked[:real], shown]))
        return error, {"reader": error.detach(), "as_asked": agreement(shown, asked)}

    def corrections(self) -> int:
        """A number of steps to learn from, from none to the most."""
        return int(torch.randint(self.cfg.reader.steps + 1, ()))

    def asked(self, prompts: list[str]) -> Tensor:
        """[B,4] numbers of the words of B captions of geometry; UNKNOWN for other prompts."""
        return numbers([parse(prompt) for prompt in prompts]).to(self.device)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss of the averaged network on held-out masks, with the same noise and times at every validation."""
        with repeatable(self.device, self.cfg.train.seed, 0, self.global_rank, batch_idx):
            x1 = self.latents(batch)
            if self.reader is not None and self.cfg.reader.only:
                loss, parts = self.read(self.reader, x1, batch["prompt"], self.cfg.reader.steps)
            else:
                loss, parts = self.sampler.loss(
                    self.average, x1, self.condition(batch), measure=self.measure,
                    teacher=self.teacher if self.cfg.ema.teacher_decay == 1 else self.average,
                    perceptual=self.autoencoder.perceptual_error,
                )
        scores = {"val/loss": loss} | {f"val/{name}": value for name, value in parts.items()}
        self.log_dict(scores, batch_size=len(x1), sync_dist=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.critic is not None and self.global_step < self.cfg.critic.alone:
            self.net.zero_grad(set_to_none=True)  # zeros would be moments of AdamW

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for twin, decay in ((self.average, self.cfg.ema.decay), (self.teacher, self.cfg.ema.teacher_decay)):
            if decay < 1 and not self.cfg.reader.only:  # at 1 it stays as it began
                ema_update_(twin, self.net, warmed_decay(decay, self.global_step))

    def configure_optimizers(self) -> Any:
        trained = self.reader if self.reader is not None and self.cfg.reader.only else self.net
        cfg = self.cfg.critic
        rival = None if self.critic is None else Rival(self.critic, cfg.lr, cfg.alone)
        return build_optimizer(trained, self.cfg.optim, self.cfg.train.max_steps, lambda: self.used, rival)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        about = describe("diffusion", to_dict(self.cfg), complete=self.complete, data=self.data)
        checkpoint[KEY] = about | {"autoencoder": to_dict(self.autoencoder.cfg)}


def load_diffusion(path: str | Path) -> DiffusionModule:
    """The model of a stage-2 checkpoint or export, in eval mode. Raises CheckpointError."""
    content = read_checkpoint(path, "diffusion", MAKE)
    about = content[KEY]
    with whole(path, MAKE):
        autoencoder = AutoencoderModule(from_dict(Stage1Cfg, about["autoencoder"]))
        module = DiffusionModule(from_dict(Stage2Cfg, about["config"]), autoencoder, about["data"])
        # An export holds nothing of how errors are weighed: that begins anew.
        own = {name: value for name, value in module.state_dict().items() if name.startswith("measure.")}
        state = {name: value for name, value in content["state_dict"].items() if not name.startswith("critic.")}
        module.load_state_dict(own | with_twins(state))
        module.complete = about["complete"]
    return module.eval().requires_grad_(False)
