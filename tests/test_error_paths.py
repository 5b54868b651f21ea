"""Refusals that no other test meets: each names what was wrong and what to do, or lets pass what it must not hide.

``python -m tests.error_paths`` lists those that no test takes.
"""

import errno
import fcntl
import os
import re
import sys
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from configs import shipped
from configs.backbone_cfg import DiTCfg, UNetCfg
from configs.beginning import require_attention, require_curriculum
from configs.checks import ConfigError
from configs.data_cfg import AugmentCfg, DataCfg, EmbeddedSource, FolderSource
from configs.diffusion_cfg import EMACfg, Stage2Cfg
from configs.generate_cfg import GenerateCfg
from configs.run_folder import LOCK, choose_run_dir, is_first, lock, newest_complete, put_right, release
from configs.sampler_cfg import FlowCfg, MeanFlowCfg, ShortcutCfg, TrajectoryCfg
from configs.trainer_cfg import TrainerCfg
from configs.whole_file import same_file, write_text
from data import embedded
from data.captions import read_text
from data.masks import DataError
from diffusion import DiffusionModule
from models.checkpoint import CheckpointError, describe, is_as_told, read_checkpoint, whole
from models.export import KEY, read_export
from models.saving import SaveError, WholeCheckpoints
from samplers import SamplerMismatch
from scripts import generate_masks
from scripts.evaluate import main as evaluate
from scripts.evaluate import require_writable
from scripts.mask_files import output_folder
from scripts.ranks import Ranks
from scripts.run import refuse_kindly
from scripts.seeded import build_sampler_for, choose_device
from scripts.train_stage_2 import main as train_stage_2
from trainer import start, take_over


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, and no training of an earlier test."""
    for name in ("MASK_RUN_DIR", "WORLD_SIZE", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)


def raising(error: BaseException) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    return refuse


# Teachers


JUMPS = TrajectoryCfg(train_guidance=2.0, jumps_from=0.0)


@pytest.mark.parametrize(("cfg", "said"), [
    (Stage2Cfg(ema=EMACfg(0.9, 1.0)), "ema.teacher_decay is 1.0, but it must be below 1 where no --init"),
    (Stage2Cfg(sampler=TrajectoryCfg(begin=0.7, jumps_from=0.5)), "is 0.5, but it must be above sampler.begin (0.7)"),
    (Stage2Cfg(init="animals", ema=EMACfg(0.9, 1.0), backbone=UNetCfg(sketch=32)), "init 'animals' reads no sketches"),
    (Stage2Cfg(init="animals", sampler=replace(JUMPS, train_guidance=1.3)), "is 1.3, but it must be 2, which"),
    (Stage2Cfg(init="animals", backbone=UNetCfg(guidance_input=True), sampler=ShortcutCfg(most_guidance=3.0)),
     "sampler.most_guidance is 3.0, but it must be 0, since the network of init 'animals' has no input for guidance"),
    (Stage2Cfg(init="animals", backbone=UNetCfg(fastest_rate=50.0), sampler=MeanFlowCfg()),
     "init is 'animals', but it must be a model whose backbone.fastest_rate is at most 1/sampler.probe (200)"),
])  # fmt: skip
def test_a_teacher_that_knows_nothing_of_what_it_is_asked_for_is_refused(cfg: Stage2Cfg, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        take_over(cfg)


@pytest.mark.parametrize(("side", "multipliers", "sizes", "near"), [
    (12, (1, 2, 2), (4, 8, 16), "12 6 3"), (24, (1, 2), (4, 8, 16), "12"), (24, (1,), (4, 8, 16), "24"),
])  # fmt: skip
def test_a_network_that_would_attend_nowhere_is_refused(
    side: int, multipliers: tuple[int, ...], sizes: tuple[int, ...], near: str
) -> None:
    cfg = UNetCfg(width=32, multipliers=multipliers, attention_sizes=sizes)
    with pytest.raises(ConfigError, match=rf"attention_sizes is 4, 8, 16, .* --backbone.attention-sizes {near}$"):
        require_attention(cfg, side)
    named = replace(cfg, attention_sizes=tuple(int(size) for size in near.split()))
    for fitting in (named, replace(cfg, attention_sizes=()), DiTCfg()):
        require_attention(fitting, side)
    require_attention(cfg, 16)


def test_a_curriculum_that_ends_before_steps_are_learned_is_refused() -> None:
    cfg = Stage2Cfg(sampler=ShortcutCfg(begin=0.5, curriculum=0.3))
    with pytest.raises(ConfigError, match=r"sampler\.curriculum is 0\.3, but no steps are learned before .*0\.5"):
        require_curriculum(cfg)
    require_curriculum(replace(cfg, sampler=ShortcutCfg(begin=0.2, curriculum=0.3)))


def test_a_model_that_learned_no_jumps_is_no_teacher_of_jumps(tiny_diffusion: DiffusionModule, tmp_path: Path) -> None:
    flow = DiffusionModule(replace(tiny_diffusion.cfg, sampler=FlowCfg()), tiny_diffusion.autoencoder)
    content: dict[str, Any] = {"state_dict": flow.state_dict()}
    flow.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    cfg = Stage2Cfg(init=str(tmp_path / "a.ckpt"), sampler=JUMPS)
    with pytest.raises(ConfigError, match="was trained with FlowCfg, which learns no jumps"):
        take_over(cfg)
    assert take_over(replace(cfg, sampler=replace(JUMPS, jumps_from=0.8)))[1] is not None


# Run folders


def test_captions_of_geometry_and_mirrored_masks_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(255 * rng.integers(0, 2, (32, 32), np.uint8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("two small round blobs, upper left")
    data = DataCfg(FolderSource(str(tmp_path)), image_size=32, augment=AugmentCfg(hflip=0.5))
    cfg = Stage2Cfg(data=data, train=TrainerCfg(run_dir=str(tmp_path / "run")))
    with pytest.raises(DataError, match=r"upper left' say where things are.*take --data\.augment\.versions"):
        start(cfg, "x", "diffusion")
    assert not (tmp_path / "run").exists()


def test_a_training_is_neither_begun_over_another_nor_resumed_from_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ConfigError, match=r"already holds a training: continue it with --train\.resume auto"):
        choose_run_dir(TrainerCfg(run_dir=str(tmp_path)), "x")
    with pytest.raises(ConfigError, match=r"no folder is named: add --train\.run-dir FOLDER"):
        choose_run_dir(TrainerCfg(resume="auto"), "x")
    other = tmp_path / "other" / "best.ckpt"
    with pytest.raises(ConfigError, match=r"already holds another training than that of train\.resume .*best\.ckpt"):
        choose_run_dir(TrainerCfg(run_dir=str(tmp_path), resume=str(other)), "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match=r"started by a launcher.*add --train\.run-dir FOLDER"):
        choose_run_dir(TrainerCfg(), "x")


def test_one_process_of_a_launcher_writes_what_there_is_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Path.touch

    def touched(path: Path) -> None:
        usual(path)
        path.unlink()  # as another process does that tries the same folder

    monkeypatch.setattr(Path, "touch", touched)
    for name in ("RANK", "NODE_RANK", "SLURM_PROCID", "MASK_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    choose_run_dir(TrainerCfg(run_dir=str(tmp_path)), "x")
    assert is_first()
    release(tmp_path)
    for name in ("SLURM_PROCID", "NODE_RANK", "RANK"):
        monkeypatch.setenv(name, "1")
        assert not is_first()
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_PROCID", "1")  # the second training of one srun, started by torchrun
    assert is_first()
    monkeypatch.setenv("MASK_RUN_DIR", f"1:{tmp_path}")  # started by process 1
    assert not is_first()


def test_folders_chosen_in_the_same_second_differ(tmp_path: Path) -> None:
    found = [choose_run_dir(TrainerCfg(runs=str(tmp_path)), "x") for _ in range(5)]
    assert len(set(found)) == 5
    for folder in found:
        release(folder)


def test_a_file_system_without_locks_is_trained_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "lockf", raising(OSError(errno.ENOLCK, "No locks available")))
    lock(tmp_path)
    release(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / LOCK).write_text("process 7 on elsewhere\n")  # and only this time there were none
    lock(tmp_path)
    assert (tmp_path / LOCK).read_text() == "process 7 on elsewhere\n"


def test_a_lock_file_that_another_has_replaced_meanwhile_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with pytest.raises(ConfigError, match=r"another training is at work .*\(of an unknown process\)"):
        lock(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{oops", '{"status": 5}'])
def test_a_run_json_of_something_else_is_no_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    assert newest_complete(str(tmp_path), "autoencoder", "x") is None
    put_right(tmp_path / "last.ckpt", "autoencoder", "x")
    assert (tmp_path / "run.json").read_text() == text


# Files


def test_where_files_cannot_have_two_names_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", raising(OSError(errno.EPERM, "Operation not permitted")))
    write_text(tmp_path / "best", "new")
    write_text(tmp_path / "last", "old")
    same_file(tmp_path / "best", tmp_path / "last")
    assert (tmp_path / "last").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_first_checkpoint_that_cannot_be_written_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.mkstemp", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(SaveError, match=r"No space left on device; .* there is no earlier checkpoint"):
        WholeCheckpoints().save_checkpoint({}, tmp_path / "last.ckpt")


def test_a_missing_model_of_the_project_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shipped.SHIPPED, "icons", tmp_path / "icons.safetensors")
    with pytest.raises(ConfigError, match=r"the model 'icons' should lie in .*icons\.safetensors, but it is not there"):
        shipped.checkpoint_path("icons")


def test_checkpoints_of_another_kind_or_version_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    about = describe("autoencoder", {}, complete=True, data="x")
    torch.save({KEY: about}, path)
    with pytest.raises(CheckpointError, match="holds a 'autoencoder' network, but a 'diffusion' one is needed"):
        read_checkpoint(path, "diffusion", "x")
    torch.save({KEY: about | {"version": 99}}, path)
    with pytest.raises(CheckpointError, match="has format version 99, but this program reads 1"):
        read_checkpoint(path, "autoencoder", "x")
    for content in ([1, 2], {KEY: "text"}, {"state_dict": {}}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="is a checkpoint of another program"):
            read_checkpoint(path, "autoencoder", "x")


@pytest.mark.parametrize("beside", ["", "[]", "{}", "{oops", "\0"])
def test_a_json_file_that_tells_no_hash_says_nothing_against_an_export(beside: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights")
    path.with_suffix(".json").write_text(beside)
    assert is_as_told(path)


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}x", (2**40).to_bytes(8, "little") + b"{}"])
def test_odd_headers_of_safetensors_are_refused(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(header)
    with pytest.raises(ValueError, match=r"header|Header|metadata|buffer"):
        read_export(path)
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
        read_checkpoint(path, "diffusion", "x")


def test_a_text_encoder_that_is_not_here_is_no_fault_of_the_checkpoint(tmp_path: Path) -> None:
    for error in (FileNotFoundError("the text encoder"), ModuleNotFoundError("transformers")):
        with pytest.raises(type(error), match=str(error)), whole(tmp_path, "x"):
            raise error
    with pytest.raises(CheckpointError, match=r"do not fit \(KeyError\)"), whole(tmp_path, "x"):
        raise KeyError


# Data


def test_captions_without_permission_and_a_damaged_embedded_set_are_data_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a cat")
    monkeypatch.setattr(Path, "read_bytes", raising(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(DataError, match=r"a\.txt cannot be read \(Permission denied\); check its permissions"):
        read_text(tmp_path / "a.txt")
    monkeypatch.setattr(np, "load", raising(OSError("no such file")))
    with pytest.raises(DataError, match=r"data/animals32\.npz is missing or damaged .*restore it from the repository"):
        embedded.load(EmbeddedSource(), DataCfg())


# Generation


def test_prompts_files_that_say_nothing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    for content, said in ((b"\xff\xfe", "not UTF-8 text"), (b"\n \n", "holds no prompt: write one per line")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            generate_masks.read_prompts(GenerateCfg(prompts_file=str(path)))


def test_a_launchers_processes_must_be_told_their_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end:
        generate_masks.main(["--prompt", "a cat"])
    assert end.value.code == 2
    assert "started by a launcher, and each process would name its own folder: add --out" in capsys.readouterr().err


def test_masks_do_not_go_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(FileExistsError, match="which is a file: name a folder"):
        output_folder(GenerateCfg(prompt=("x",), out=str(tmp_path / "out")))


def test_the_others_leave_when_the_first_process_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "agree", lambda self, ok=True: False)
    with pytest.raises(SystemExit) as end:
        Ranks(1, 2).first(lambda: None)
    assert end.value.code == 2
    with pytest.raises(FileExistsError):  # the first says why
        Ranks(0, 2).first(raising(FileExistsError("in use")))


def test_samplers_and_devices_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SamplerMismatch, match="cannot be driven by shortcut"):
        build_sampler_for(FlowCfg(), "shortcut")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="accelerator is 'gpu', but torch sees no GPU here"):
        choose_device("gpu")
    assert choose_device("auto") == torch.device("cpu")


def test_a_full_disk_is_a_sentence_and_a_failure_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, refuse_kindly("x"):
        raise OSError(errno.ENOSPC, "No space left on device", "masks/grid.png")
    assert end.value.code == 1
    assert capsys.readouterr().err == "x: [Errno 28] No space left on device: 'masks/grid.png'\n"


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1"])
def test_a_name_that_the_terminal_cannot_show_is_no_error(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {name: TextIOWrapper(BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in shown.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as end, refuse_kindly("x"):
        raising(ConfigError("o\udcff cannot be written"))(print("masks: o\udcff"))
    monkeypatch.undo()
    assert end.value.code == 2
    for name, said in (("stdout", "masks: o\\udcff\n"), ("stderr", "x: o\\udcff cannot be written\n")):
        shown[name].seek(0)
        assert shown[name].read() == said


@pytest.mark.parametrize(("out", "said"), [
    ("", "which is a folder: name a file"), ("file/evaluation.json", "cannot be written"),
    ("result.png", "result.png', but the figure goes there: name the report"),
    ("notes.json", "notes.json is not overwritten"), ("other.json", "other.png is not overwritten, since other.json"),
])  # fmt: skip
def test_a_judgement_that_could_not_be_written_is_not_begun(
    out: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for theirs in ("file", "notes.json", "other.png"):
        (tmp_path / theirs).touch()
    with pytest.raises(SystemExit) as end:
        evaluate(["--checkpoint", "animals", "--out", str(tmp_path / out)])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_an_evaluation_is_replaced_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"checkpoint_sha256": "ab"}')
    (tmp_path / "evaluation.png").touch()
    require_writable(tmp_path / "evaluation.json", True)
    (tmp_path / "x-sketches.png").touch()
    require_writable(tmp_path / "x.json", False)
    with pytest.raises(ConfigError, match=r"x-sketches\.png is not overwritten"):
        require_writable(tmp_path / "x.json", True)


def test_a_training_that_is_refused_after_its_data_were_read_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train_stage_2([
            "animals-tiny", "--autoencoder", "animals", "--sampler.bands", "uniform", "--sampler.band-levels", "5",
            "--data.limit", "16", "--train.accelerator", "cpu", "--train.run-dir", str(tmp_path / "run"),
        ])  # fmt: skip
    assert end.value.code == 2
    assert "band_levels" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_judgement_that_a_full_disk_stops_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = SimpleNamespace(cfg=SimpleNamespace(data=SimpleNamespace(channels=1)), sha256="")
    monkeypatch.setattr("scripts.mask_model.load_mask_model", lambda *_: module)
    monkeypatch.setattr("data.sources.load_splits", lambda _: (None, None))
    monkeypatch.setattr("scripts.evaluate.evaluate", lambda *_: {})
    monkeypatch.setattr("metrics.report.as_table", lambda _: "")
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(SystemExit) as end:
        evaluate(["--checkpoint", "animals", "--out", str(tmp_path / "evaluation.json")])
    assert end.value.code == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_nobody_foresaw_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), refuse_kindly("x"):
        raise ZeroDivisionError
