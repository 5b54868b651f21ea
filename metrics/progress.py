"""The progress bar of a training: one bar over all steps, instead of Lightning's bar for each epoch."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer, TQDMProgressBar
from tqdm import tqdm


class StepProgress(TQDMProgressBar):
    """One bar over all optimiser steps, with the time left of the whole training, or of its time limit."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning sets callbacks on its trainer without declaring them.
        self.timer = next((own for own in trainer.callbacks if isinstance(own, Timer)), None)  # type: ignore[attr-defined]
        total = None if self.timer and self.timer.time_remaining() is not None else trainer.max_steps
        self.bar = tqdm(total=total, initial=trainer.global_step, desc="training", disable=self.is_disabled,
                        dynamic_ncols=True, mininterval=1.0)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None: ...

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None: ...

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        moved = trainer.global_step - self.bar.n
        if moved > 0:
            if trainer.global_step % 10 == 0:
                shown = {key: f"{float(value):.4f}" for key, value in trainer.progress_bar_metrics.items()}
                if self.timer and (left := self.timer.time_remaining()) is not None:
                    shown["ends in"] = f"{max(0.0, left) / 60:.1f} min"
                self.bar.set_postfix(shown, refresh=False)
            self.bar.update(moved)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.close()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None: ...

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None: ...

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None: ...

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None: ...
