"""Losses and gradients that are no finite numbers: never in the weights, named, or left out up to a stated number."""

import math
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY_1
from lightning.pytorch.callbacks import Timer
from test_faults_resume import content, same, small, train
from torch import nn

from autoencoder import AutoencoderModule
from configs.trainer_cfg import OptimCfg, TrainerCfg
from models.optim import build_optimizer
from models.steps import NonFiniteError, StepRoutine, WholeStepTimer


class Steps:
    """A linear layer trained through StepRoutine's hooks, in the order in which Lightning calls them."""

    def __init__(self, folder: Path, scaler: Any = None, **train: Any) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)
        self.optimizer = build_optimizer(self.net, OptimCfg(warmup_steps=0), 100)["optimizer"]
        self.routine = StepRoutine(TrainerCfg(log_every=1000, **train), 1.0, folder)
        names = SimpleNamespace(mask_name="mask {}".format)
        self.scaler = scaler
        self.trainer: Any = SimpleNamespace(
            global_step=0, global_rank=0, world_size=1, datamodule=names,
            precision="16-mixed" if scaler else "32-true", precision_plugin=SimpleNamespace(scaler=scaler),
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()),
        )  # fmt: skip

    def step(self, x: float = 1.0, loss_factor: float = 1.0) -> None:
        module: Any = SimpleNamespace(device=torch.device("cpu"), log=lambda *_: None)
        index = 2 * self.trainer.global_step + torch.arange(2)
        self.routine.on_train_batch_start(self.trainer, module, {"index": index}, 0)
        flow = self.net(torch.full((2, 3), x)).square().mean() * loss_factor
        loss = flow + self.net.weight.mean()
        scaled = self.scaler.scale(loss) if self.scaler else loss
        self.routine.on_before_backward(self.trainer, module, scaled)
        self.optimizer.zero_grad()
        scaled.backward()
        self.routine.on_before_optimizer_step(self.trainer, module, self.optimizer)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.trainer.global_step += 1
        outputs = {"loss": loss, "flow": flow.detach(), "rest": self.net.weight.mean().detach()}
        self.routine.on_train_batch_end(self.trainer, module, outputs, {"index": index}, 0)

    def state(self) -> Any:
        state = {"net": self.net.state_dict(), "moments": self.optimizer.state_dict()["state"]}
        return torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state)


def test_the_time_that_is_used_is_that_of_the_first_process(tmp_path: Path) -> None:
    """Otherwise one process would begin with another kind of step before the others, and wait for them in vain."""
    trainer: Any = SimpleNamespace(
        global_step=0, global_rank=1, world_size=2, callbacks=[], strategy=SimpleNamespace(broadcast=lambda own: 0.75),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()),
    )  # fmt: skip
    for name, rest in (("on_train_start", ()), ("on_train_batch_start", ({}, 0))):
        module: Any = SimpleNamespace(used=0.0)
        getattr(StepRoutine(TrainerCfg(), 1.0, tmp_path), name)(trainer, module, *rest)
        assert module.used == 0  # without a time limit there is nothing to ask
        getattr(StepRoutine(TrainerCfg(max_minutes=1), 1.0, tmp_path), name)(trainer, module, *rest)
        assert module.used == 0.75


def test_a_time_limit_ends_a_training_only_after_an_update() -> None:
    """Else gradients that are still being added up would be lost, and their masks count as seen."""
    timer = WholeStepTimer(timedelta(seconds=-1))  # it is over
    trainer: Any = SimpleNamespace(
        global_step=3, should_stop=False, strategy=SimpleNamespace(broadcast=lambda own: own)
    )
    timer.on_train_batch_start(trainer, None, {}, 0)
    timer.on_train_batch_end(trainer, None, {}, {}, 0)
    assert not trainer.should_stop
    timer.on_train_batch_start(trainer, None, {}, 1)
    trainer.global_step = 4
    timer.on_train_batch_end(trainer, None, {}, {}, 1)
    assert trainer.should_stop
    assert timer.state_key == Timer(timedelta(seconds=1)).state_key  # a training of before goes on with its time


def test_the_speed_counts_the_masks_of_the_batches_however_large_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routine, told, clock = StepRoutine(TrainerCfg(log_every=2), 1.0, tmp_path), [], iter(range(100))
    monkeypatch.setattr("models.steps.time", SimpleNamespace(monotonic=lambda: 4.0 * next(clock)))
    module: Any = SimpleNamespace(device=torch.device("cpu"), log=lambda name, value: told.append(value))
    for step, rows in enumerate((5, 7, 6, 2, 9), 1):
        trainer: Any = SimpleNamespace(global_step=step, world_size=3, precision_plugin=SimpleNamespace())
        routine.on_train_batch_end(trainer, module, {"loss": torch.ones(())}, {"index": torch.arange(rows)}, 0)
    assert told == [3 * (6 + 2) / 4.0]  # steps 3 and 4, in the four seconds from one look at the clock to the next


def test_an_update_that_is_no_number_leaves_weights_and_moments_as_they_were(tmp_path: Path) -> None:
    steps = Steps(tmp_path, skip_nonfinite=2)
    steps.step()
    before = steps.state()
    steps.step(x=math.nan)
    steps.step(x=math.inf)
    same(before, steps.state())
    steps.step()  # a good one ends the row
    assert not torch.equal(before["net"]["weight"], steps.net.weight)
    steps.step(x=math.nan)
    steps.step(x=math.nan)
    with pytest.raises(NonFiniteError, match=r"3 such step\(s\) in a row, train\.skip_nonfinite allows 2"):
        steps.step(x=math.nan)


def test_the_sentence_names_the_masks_the_part_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"")
    steps = Steps(tmp_path)
    steps.step()
    with pytest.raises(NonFiniteError) as error:
        steps.step(x=math.nan)
    said = str(error.value)
    assert "step 2" in said
    assert "loss nan (of its parts: flow nan) of the masks mask 2, mask 3" in said
    assert f"{tmp_path / 'last.ckpt'} is whole: go on from it with: bash scripts/train_stage_N.sh {tmp_path}" in said


def test_a_loss_beyond_all_numbers_is_caught_though_its_gradient_is_finite(tmp_path: Path) -> None:
    """The weights' own part of the loss goes on to have a gradient of 1/3."""
    steps = Steps(tmp_path)
    before = steps.state()["net"]
    loss = torch.tensor(math.inf) + steps.net.weight.mean()
    loss.backward()
    assert steps.net.weight.grad is not None
    assert steps.net.weight.grad.isfinite().all()
    with pytest.raises(NonFiniteError, match="loss inf"):
        steps.step(x=1e18, loss_factor=1e18)
    same(before, steps.state()["net"])


def test_a_gradient_beyond_all_numbers_is_caught_though_its_loss_is_finite(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    with torch.no_grad():
        steps.net.weight.zero_()
        steps.net.bias.fill_(1e-20)
    with pytest.raises(NonFiniteError, match="the loss is finite but its gradient is not"):
        steps.step(x=3e38, loss_factor=1e21)


def test_fp16_leaves_out_updates_while_its_scale_falls_and_clips_the_true_gradient(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    steps = Steps(tmp_path, scaler)
    before = steps.state()["net"]
    steps.step(x=10.0)  # the scaled gradient overflows
    same(before, steps.state()["net"])
    assert scaler.get_scale() == 2.0**126
    steps.routine.clip_norm = 1e-3
    steps.step(x=0.01)
    assert not torch.equal(before["weight"], steps.net.weight)
    grads = [p.grad for p in steps.net.parameters() if p.grad is not None]
    assert torch.stack([g.norm() for g in grads]).norm() <= 1.001e-3


@pytest.mark.slow
def test_a_training_stops_before_the_update_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = AutoencoderModule.training_step

    def poisoned(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 3:
            batch["image"][1] = math.nan
        return usual(self, batch, batch_idx)

    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    cfg = small(TINY_1)
    monkeypatch.setattr(AutoencoderModule, "training_step", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 4.*reconstruction nan.*animals32/\d+.*last\.ckpt is whole"):
        train(cfg, tmp_path / "bad")
    kept = content(tmp_path / "bad" / "last.ckpt")
    assert kept["global_step"] == 2
    last = content(train(cfg, tmp_path / "skipped", skip_nonfinite=1))
    assert last["global_step"] == 5
    assert all(value.isfinite().all() for value in last["state_dict"].values())
