"""The quality of samples while training: distance, prompt accuracy and memorisation at each validation."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from metrics.callbacks import Drawing, same_noise
from metrics.classifier import PAUSE_EVERY
from metrics.features import judge_features
from metrics.judge import classifier_judge, encoder_judge, forget_other, is_classes
from metrics.yardstick import Yardstick

BATCH = 128


@dataclass(frozen=True)
class Prompted:
    """Real masks [N,H,W] uint8 of 0 and 1, and their N prompts."""

    masks: Tensor
    prompts: list[str]


class QualityMonitor(Drawing):
    """Judges samples for held-out prompts, always from the same prompts and noise; every rank draws its share.

    Logs ``val/frechet_1`` (squared, in the features of metrics.judge), ``val/accuracy_1`` or ``val/retrieval_1``, the
    same for the other step counts, ``val/frechet_real`` of as many real masks, and of the one-step masks
    ``val/memorised`` (median best IoU to the training set) and ``val/memorised_above`` (share above the held-out
    masks' 99th percentile: 0.01 if nothing is copied). ``val/judging_share`` is the share of the training's time that
    all this took so far.
    """

    def __init__(
        self, train: Prompted, held_out: Prompted, num: int, seed: int, folder: Path,
        steps: tuple[int, ...] = (1, 4, 32),
    ) -> None:
        super().__init__(steps)
        self.train, self.held_out = train, held_out
        self.num, self.seed, self.folder = num, seed, folder
        self.yardstick: Yardstick | None = None
        self.ready = False
        self.began, self.spent = time.monotonic(), 0.0

    def chosen(self, module: Any) -> str:
        """What is logged of the best checkpoint: the distance in about as many steps as the model takes by itself."""
        own = 1 if module.cfg.critic.width else module.sampler.cfg.steps  # a critic looks at single steps
        return f"val/frechet_{min(self.counts(module), key=lambda steps: abs(math.log(steps / own)))}"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began, self.spent = time.monotonic(), 0.0

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        started = time.monotonic()
        self.prepare(trainer, pl_module)
        own, prompts, noise = self.questions(pl_module, trainer.world_size)
        numbers: dict[str, float] = {}
        for steps in self.counts(pl_module):
            masks = self.draw(trainer, pl_module, prompts, noise, steps)
            if trainer.is_global_zero:
                numbers |= self.judge(pl_module, masks, prompts, own, steps)
        self.spent += time.monotonic() - started
        numbers["judging_share"] = self.spent / max(time.monotonic() - self.began, 1e-9)
        numbers = trainer.strategy.broadcast(numbers)  # the best checkpoint is chosen on every rank
        pl_module.log_dict({f"val/{name}": value for name, value in numbers.items()}, rank_zero_only=False)

    def questions(self, module: Any, ranks: int) -> tuple[list[int], list[str], Tensor]:
        """Rows of the held-out masks, their prompts, and noise [N,Cz,h,w]; N is a multiple of the number of ranks."""
        generator = torch.Generator().manual_seed(self.seed)
        num = max(ranks, self.num // ranks * ranks)
        own = torch.randint(len(self.held_out.prompts), (num,), generator=generator).tolist()
        noise = torch.randn(num, *module.latent_shape, generator=generator)
        return own, [self.held_out.prompts[i] for i in own], noise

    def draw(self, trainer: L.Trainer, module: Any, prompts: list[str], noise: Tensor, steps: int) -> Tensor:
        """Masks [N,H,W] uint8 of 0 and 1, on every rank."""
        share = len(prompts) // trainer.world_size  # the same on all ranks: sharded networks need all of them to ask
        first = trainer.global_rank * share
        parts = []
        for at in range(first, first + share, BATCH):
            self.pause()
            rows = slice(at, min(at + BATCH, first + share))
            with same_noise(module.device, self.seed + 1 + at):
                p = module.generate(prompts[rows], noise[rows].to(module.device), steps=steps)  # [b,1,H,W]
            parts.append((p[:, 0] > 0.5).to(torch.uint8))
        masks = torch.cat(parts)
        if trainer.world_size > 1:
            masks = module.all_gather(masks).flatten(0, 1)
        return masks.cpu()

    def judge(self, module: Any, masks: Tensor, prompts: list[str], own: list[int], steps: int) -> dict[str, float]:
        """All numbers of one step count, each with the step count in its name."""
        yardstick = self.yardstick
        assert yardstick is not None  # prepared
        found = {"frechet": yardstick.frechet(masks)} | yardstick.adherence(masks, prompts, own, self.seed)
        numbers = {f"{name}_{steps}": value for name, value in found.items()}
        if steps == self.steps[0]:
            numbers |= yardstick.memorised(masks)
            shuffled = torch.randperm(len(yardstick.training), generator=torch.Generator().manual_seed(self.seed))
            numbers["frechet_real"] = yardstick.frechet(yardstick.training[shuffled[: len(masks)]])
        return numbers

    def prepare(self, trainer: L.Trainer, module: Any) -> None:
        """Have a yardstick, on the first rank; the others wait as long as they can all heed a signal."""
        if self.ready:
            return
        held_out, training = self.held_out.masks, self.train.masks
        classes, path = is_classes(self.train.prompts), self.folder / "classifier.pt"
        steps = min(1000, 10 * len(training))  # a handful of masks is learned sooner
        if trainer.is_global_zero and classes:
            forget_other(path, training, self.train.prompts)
        known = trainer.strategy.broadcast(path.exists())
        if trainer.is_global_zero:
            judge = encoder_judge(module.autoencoder) if not classes else classifier_judge(
                training, self.train.prompts, steps=steps, seed=self.seed, path=path, pause=self.pause
            )
            self.yardstick = Yardstick(held_out, training, judge, judge_features(judge), search=self.num)
        elif classes and not known:
            for _ in range(steps // PAUSE_EVERY):
                self.pause()
        self.ready = True
