"""A training that was stopped and resumed is the one that was not, bit by bit."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_1, TINY_2

from autoencoder import AutoencoderModule
from configs.autoencoder_cfg import Stage1Cfg
from configs.checks import ConfigError
from configs.data_cfg import AugmentCfg, ShardSource
from data.masks import DataError
from data.sources import load_splits
from diffusion import DiffusionModule
from metrics.run_report import read_columns
from models.checkpoint import CheckpointError
from models.steps import StepRoutine
from samplers import SAMPLERS
from scripts.make_shards import write_part
from trainer import train_stage_1, train_stage_2

pytestmark = pytest.mark.slow
STEPS = 5  # of three batches an epoch


def train(cfg: Any, folder: Path, **changes: Any) -> Path:
    cfg = replace(cfg, train=replace(cfg.train, run_dir=str(folder), runs=str(folder.parent), **changes))
    (train_stage_1 if isinstance(cfg, Stage1Cfg) else train_stage_2)(cfg, "x")
    return folder / "last.ckpt"


def small(cfg: Any, **changes: Any) -> Any:
    few = {"image_size": 16, "batch_size": 4, "limit": 12, "val_fraction": 0.001, "augment": AugmentCfg(hflip=0.5)}
    data = replace(cfg.data, **few | changes)
    return replace(cfg, data=data, train=replace(cfg.train, max_steps=STEPS, val_every=2))


def content(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def same(a: Any, b: Any, where: str = "") -> None:
    """Every tensor and number of two nested structures is equal."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def same_training(a: Path, b: Path) -> None:
    one, other = content(a), content(b)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        same(one[part], other[part], part)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """``sent(number, step)``: this process is sent a signal in the middle of that step."""
    usual = StepRoutine.on_before_optimizer_step

    def at(number: int, step: int) -> None:
        def hook(self: StepRoutine, trainer: Any, *rest: Any) -> None:
            usual(self, trainer, *rest)
            if trainer.global_step == step - 1:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(StepRoutine, "on_before_optimizer_step", hook)

    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    return at


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small(TINY_1), tmp_path_factory.mktemp("runs") / "stage1")


CASES = [(1, 0), (2, 0), (1, 2), (2, 2)]


@pytest.mark.parametrize(("stage", "workers"), CASES)
def test_stopped_by_a_signal_and_resumed_is_unbroken(
    stage: int, workers: int, stage_1: Path, sent: Callable[[int, int], None], tmp_path: Path
) -> None:
    """In the middle of an epoch, where a validation is due, and at the end of an epoch."""
    cfg = small(TINY_1, workers=workers)
    if stage == 2:
        cfg = replace(small(TINY_2, workers=workers, cache_latents=workers == 0), autoencoder=str(stage_1))
    whole = train(cfg, tmp_path / "whole")
    for number, step in ((signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGTERM, 3)):
        sent(number, step)
        with pytest.raises(SystemExit) as end:
            train(cfg, tmp_path / "parts", resume="auto")
        assert end.value.code == 128 + number
        assert not active_children()  # also of a training that was stopped while it validated
        assert content(tmp_path / "parts" / "last.ckpt")["global_step"] == step
    same_training(whole, train(cfg, tmp_path / "parts", resume="auto"))


def test_updates_from_several_batches_take_whole_groups_and_resume_unbroken(
    sent: Callable[[int, int], None], tmp_path: Path
) -> None:
    """With five or six batches an epoch, of which each update takes four; the others wait for another epoch."""
    cfg = small(TINY_1, batch_size=2)
    cfg = replace(cfg, train=replace(cfg.train, accumulate=4))
    whole = train(cfg, tmp_path / "whole")
    assert (tmp_path / "whole" / "best.ckpt").exists()  # validations came when they were due
    progress = content(whole)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert progress["processed"] == 4 * STEPS
    for number, step in ((signal.SIGTERM, 1), (signal.SIGINT, 2)):
        sent(number, step)
        with pytest.raises(SystemExit):
            train(cfg, tmp_path / "parts", resume="auto")
    same_training(whole, train(cfg, tmp_path / "parts", resume="auto"))
    with pytest.raises(DataError, match=r"accumulate is 9, but each process has only [56] batches of 2"):
        train(replace(cfg, train=replace(cfg.train, accumulate=9)), tmp_path / "none")


@pytest.mark.parametrize(("stage", "workers"), [(1, 2), (2, 0)])
def test_a_stream_of_shards_stopped_and_resumed_is_unbroken(
    stage: int, workers: int, stage_1: Path, sent: Callable[[int, int], None], tmp_path: Path
) -> None:
    """In the middle of the first pass over the shards, and after it; stage 2 encodes in each step."""
    folder = tmp_path / "shards"
    folder.mkdir()
    masks, held_out = load_splits(small(TINY_1).data)
    write_part(folder, "train", iter([masks]), samples=3)
    write_part(folder, "test", iter([held_out]), samples=10)
    streamed = {"workers": workers, "limit": 0, "source": ShardSource(str(folder), shuffle=2)}
    cfg = small(TINY_1, **streamed)
    if stage == 2:
        cfg = replace(small(TINY_2, **streamed), autoencoder=str(stage_1))
    whole = train(cfg, tmp_path / "whole")
    for number, step in ((signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGTERM, 3)):
        sent(number, step)
        with pytest.raises(SystemExit):
            train(cfg, tmp_path / "parts", resume="auto")
    same_training(whole, train(cfg, tmp_path / "parts", resume="auto"))
    one, other = (content(tmp_path / name / "last.ckpt")["MaskDataModule"] for name in ("whole", "parts"))
    same(one, other)


def test_a_validation_that_a_signal_broke_off_is_done_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """best.ckpt is that of the unbroken training too."""
    usual, seen = AutoencoderModule.validation_step, []

    def interrupted(self: Any, batch: Any, batch_idx: int) -> Any:
        seen.append(batch_idx)
        if seen == [0, 1]:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self, batch, batch_idx)

    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    cfg = small(TINY_1)
    whole = train(cfg, tmp_path / "whole")
    monkeypatch.setattr(AutoencoderModule, "validation_step", interrupted)
    with pytest.raises(SystemExit) as end:
        train(cfg, tmp_path / "parts")
    assert end.value.code == 143
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "unfinished"
    parts = train(cfg, tmp_path / "parts", resume="auto")
    assert seen[:4] == [0, 1, 0, 1]
    same_training(whole, parts)
    same_training(whole.with_name("best.ckpt"), parts.with_name("best.ckpt"))


def test_a_changed_learning_rate_takes_effect_and_another_batch_size_goes_on(
    sent: Callable[[int, int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: Any) -> None:
        raise ConfigError("no such server")

    cfg = small(TINY_1)
    sent(signal.SIGTERM, 2)
    with pytest.raises(SystemExit):
        train(cfg, tmp_path)
    changed = replace(cfg, optim=replace(cfg.optim, lr=1e-4, final_lr=1.0), data=replace(cfg.data, batch_size=2))
    last = content(train(changed, tmp_path, resume="auto"))
    assert "optim.lr: 0.001 -> 0.0001" in (said := capsys.readouterr().out)
    assert "not bit by bit: batch_size 4 -> 2" in said
    assert {group["lr"] for group in last["optimizer_states"][0]["param_groups"]} == {1e-4}
    progress = last["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert progress["processed"] == 4 + 3  # two batches of four masks, and three steps of two
    told = [(tmp_path / name).read_text() for name in ("run.json", "config.json")]
    with pytest.raises(CheckpointError, match=r"holds another network.*autoencoder\.width: 8 -> 16"):
        train(replace(cfg, autoencoder=replace(cfg.autoencoder, width=16)), tmp_path, resume="auto", max_steps=9)
    monkeypatch.setattr("trainer.build_trainer", unreachable)
    with pytest.raises(ConfigError, match="no such server"):
        train(cfg, tmp_path, resume="auto", max_steps=9, trackers=())
    assert [(tmp_path / name).read_text() for name in ("run.json", "config.json")] == told
    assert json.loads(told[0])["status"] == "complete"


def test_parts_of_the_loss_are_logged_at_their_own_step_however_short_epochs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of three steps and an interval of five: Lightning writes in the steps 4 and 9."""
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    usual, seen = DiffusionModule.training_step, {}

    def step(self: DiffusionModule, batch: Any, batch_idx: int) -> Any:
        outputs = usual(self, batch, batch_idx)
        seen[self.global_step] = {name: float(value.detach()) for name, value in outputs.items()}
        return outputs

    monkeypatch.setattr(DiffusionModule, "training_step", step)
    cfg = small(TINY_2)
    cfg = replace(cfg, autoencoder=str(train(small(TINY_1), tmp_path / "1")))
    for until, resume in ((10, "none"), (15, "auto")):  # the second time for longer, from the end of an epoch's step
        train(cfg, tmp_path / "2", max_steps=until, val_every=5, log_every=5, resume=resume)
    columns = read_columns(tmp_path / "2")
    for name, steps in (("loss", (4, 9, 14)), ("flow", (4, 9, 14)), ("consistency", (4, 8, 14))):  # 9 has no such rows
        written = columns[name if name == "loss" else f"train/{name}"]
        assert [after for after, _ in written] == [5, 10, 15]
        assert [value for _, value in written] == pytest.approx([seen[n][name] for n in steps])
    assert [after for after, _ in columns["train/grad_norm"]] == [5, 10, 15]
    assert "consistency" not in seen[9]


@pytest.mark.faults
@pytest.mark.parametrize("sampler", sorted(SAMPLERS, key=lambda cls: cls.__name__))
def test_every_objective_resumes_bit_by_bit(
    sampler: Any, stage_1: Path, sent: Callable[[int, int], None], tmp_path: Path
) -> None:
    cfg = replace(small(TINY_2), autoencoder=str(stage_1), sampler=sampler())
    whole = train(cfg, tmp_path / "whole")
    sent(signal.SIGTERM, 3)
    with pytest.raises(SystemExit):
        train(cfg, tmp_path / "parts")
    same_training(whole, train(cfg, tmp_path / "parts", resume="auto"))
