"""What a training shows of itself: reconstruction scores, pictures, and sample grids with fixed prompts and seeds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchvision.utils import make_grid

from metrics.pictures import keep_picture
from metrics.reconstruction import dice, iou
from metrics.trackers import show_picture


def add_picture(trainer: L.Trainer, tag: str, pictures: Tensor, columns: int, rows: Sequence[str]) -> None:
    """Write pictures [N,C,H,W] in [0,1] as one grid with the names ``rows`` to the run folder and to the trackers."""
    if not trainer.is_global_zero:
        return
    grid = make_grid(pictures.float().cpu(), nrow=columns, padding=1, pad_value=0.5).clamp(0, 1)
    keep_picture(Path(trainer.default_root_dir), tag, trainer.global_step, grid, rows)
    show_picture(trainer.loggers, tag, grid, trainer.global_step)


class ReconstructionMonitor(L.Callback):
    """IoU and Dice of held-out masks, and a grid of masks above their reconstructions."""

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        x, p = outputs["image"], outputs["reconstruction"]
        if x.shape[1] == 1:
            real, drawn = x > 0.5, p > 0.5
            scores = {"val/iou": iou(drawn, real).mean(), "val/dice": dice(drawn, real).mean()}
            pl_module.log_dict(scores, batch_size=len(x), sync_dist=True, prog_bar=True)
        if batch_idx == 0:
            add_picture(trainer, "reconstructions", torch.cat([x[:16], p[:16]]), len(x[:16]), ["mask", "rebuilt"])


def go_on() -> None:
    """A pause in which nothing happens."""


@contextmanager
def same_noise(device: torch.device, seed: int) -> Iterator[None]:
    """What samplers add in their steps is the same at every validation; the stream outside goes on as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Drawing(L.Callback):
    """Draws samples in a validation, which may take long."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps = steps
        self.pause: Callable[[], None] = go_on
        """Called between batches, by all ranks alike; it may raise to break off the validation."""

    def counts(self, module: Any) -> list[int]:
        """The step counts to draw in: those that the sampler can take."""
        return [steps for steps in self.steps if steps <= module.sampler.path.most_steps]


class SamplePreview(Drawing):
    """Grids of samples at several step counts, from the same prompts and noise at every validation."""

    def __init__(self, prompts: list[str], seed: int, steps: tuple[int, ...] = (1, 4, 32), rows: int = 8) -> None:
        super().__init__(steps)
        self.prompts = [prompt for prompt in dict.fromkeys(prompts)][:rows]
        self.seed = seed

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        per_prompt = 8
        prompts = [prompt for prompt in self.prompts for _ in range(per_prompt)]
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(len(prompts), *pl_module.latent_shape, generator=generator).to(pl_module.device)
        for steps in self.counts(pl_module):  # on every rank: sharded networks need all of them
            self.pause()
            with same_noise(pl_module.device, self.seed + 1):
                masks = pl_module.generate(prompts, noise, steps=steps)
            add_picture(trainer, f"samples/{steps}_steps", masks, per_prompt, self.prompts)
