"""Files of a training under faults: whole or not there, one training a folder, refused where they cannot be kept."""

import errno
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from torch import nn

from autoencoder import load_autoencoder
from configs.autoencoder_cfg import Stage1Cfg
from configs.checks import ConfigError
from configs.run_folder import choose_run_dir, describe_run, lock, newest_complete, release
from configs.trainer_cfg import TrainerCfg
from configs.whole_file import file_hash, same_file, sweep, write_text, write_whole
from models.checkpoint import CheckpointError, describe
from models.export import KEY
from models.hardware import LAUNCHED, require_address, require_port, require_processes
from models.resume import MADE, as_before, find_resume, lighter, require_fit
from models.saving import Checkpoints, SaveError, WholeCheckpoints, kept, move, require_space
from scripts.run import refuse_kindly
from trainer import starters

ROOT = Path(__file__).parents[1]


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def fail(file: Any) -> None:
        file.write(b"half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a", fail)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_kill_while_writing_leaves_the_old_file_and_the_rest_is_swept(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from configs.whole_file import write_whole\n"
        "def half(file):\n    file.write(b'new' * 9999); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(Path(sys.argv[1]), half)"
    )
    assert python(code, str(tmp_path / "a")).returncode == -9
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_second_name_of_a_file_stays_when_the_first_is_written_anew(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for old in ("1", "2"):
        write_text(first, old)
        same_file(first, second)
        same_file(first, second)
    write_text(first, "3")
    assert (first.read_text(), second.read_text()) == ("3", "2")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "I/O error")])
def test_a_checkpoint_that_cannot_be_written_is_an_error_and_harms_no_other(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = WholeCheckpoints()
    writer.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(SaveError, match=rf"{error.strerror}.*MB are free.*last\.ckpt is whole.*--train\.resume auto"):
        writer.save_checkpoint({"step": 2}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"step": 1}


def test_a_disk_that_fills_up_while_saving_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch hides the writer's error behind one of its own."""
    writer = WholeCheckpoints()
    writer.save_checkpoint({"x": torch.zeros(1000)}, tmp_path / "last.ckpt")
    usual = os.fdopen

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 3000

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: Any) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(os, "fdopen", lambda *args: Full(usual(*args)))
    with pytest.raises(SystemExit) as end, refuse_kindly("train_stage_1"):
        writer.save_checkpoint({"x": torch.ones(10000)}, tmp_path / "last.ckpt")
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert "could not be written (" in said
    assert "MB are free" in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["x"].sum() == 0


def test_too_little_room_is_found_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Linear(1000, 1000)  # 4 MB, 12 with its moments, and three files
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 37_000_000))
    require_space(tmp_path, net)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 35_000_000))
    with pytest.raises(ConfigError, match="35 MB free, but checkpoints need about 36 MB"):
        require_space(tmp_path, net)
    (tmp_path / "last.ckpt").write_bytes(bytes(500_000))
    os.link(tmp_path / "last.ckpt", tmp_path / "best.ckpt")  # as most are: one file, whose room counts once
    with pytest.raises(ConfigError, match="checkpoints need about 36 MB"):
        require_space(tmp_path, net)
    (tmp_path / "best.ckpt").unlink()
    (tmp_path / "best.ckpt").mkdir()  # a checkpoint in parts
    (tmp_path / "best.ckpt" / "shard").write_bytes(bytes(600_000))
    require_space(tmp_path, net)


def test_a_folder_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        choose_run_dir(TrainerCfg(run_dir=str(tmp_path / "file" / "run")), "x")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # what a folder of someone else does, except for root
    with pytest.raises(ConfigError, match=r"cannot be written.*--train\.run-dir"):
        choose_run_dir(TrainerCfg(run_dir=str(tmp_path / "run")), "x")


def test_two_trainings_in_one_folder_are_refused_and_a_kill_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from configs.run_folder import lock\n"
        "lock(Path(sys.argv[1]))\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    lock(tmp_path)
    second = python(code, str(tmp_path))
    assert second.returncode == 1
    assert f"another training is at work in {tmp_path} (process {os.getpid()} on" in second.stderr
    release(tmp_path)
    assert python(code, str(tmp_path)).returncode == -9
    lock(tmp_path)  # the killed one holds nothing
    release(tmp_path)
    assert not list(tmp_path.iterdir())


def test_stale_parts_of_a_killed_training_are_swept_when_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    (tmp_path / ".last.ckpt.abc.part").write_bytes(b"half")
    choose_run_dir(TrainerCfg(run_dir=str(tmp_path), resume="auto"), "x")
    release(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "stage"), [("autoencoder", "1"), ("diffusion", "2")])
def test_a_training_that_ended_too_soon_names_the_command_that_goes_on_with_it(
    kind: str, stage: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    assert kept(folder) == "there is no earlier checkpoint"
    (folder / "last.ckpt").touch()
    describe_run(folder, kind, "x", "unfinished")
    words = f"bash scripts/train_stage_{stage}.sh '{folder}/config.json' --train.run-dir '{folder}' --train.resume auto"
    assert kept(folder).endswith(f"go on from it with: {words}")


@pytest.mark.parametrize(("mode", "best"), [("min", "1.0"), ("max", "3.0")])
def test_the_best_checkpoint_is_that_of_the_best_score_and_the_last_that_of_the_last(
    mode: str, best: str, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, "val/x", mode)
    for step, score in enumerate((2.0, 1.0, math.nan, 3.0, 2.5)):
        trainer: Any = SimpleNamespace(
            callback_metrics={"val/x": torch.tensor(score)}, is_global_zero=True, global_step=step,
            save_checkpoint=lambda path, score=score: write_text(path, str(score)),
        )  # fmt: skip
        checkpoints.on_validation_end(trainer, nn.Module())  # type: ignore[arg-type]  # which it does not look at
        assert (tmp_path / "last.ckpt").read_text() == str(score)
    assert (tmp_path / "best.ckpt").read_text() == best


def test_a_resume_says_that_its_masks_are_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module: Any = SimpleNamespace(cfg=Stage1Cfg())
    trainer: Any = SimpleNamespace(
        precision="32-true", strategy=SimpleNamespace(root_device=torch.device("cpu")), world_size=1,
        is_global_zero=True, datamodule=SimpleNamespace(streams=False, train_set=range(20)),
    )  # fmt: skip
    checkpoints = Checkpoints(tmp_path, "val/x", "min")
    content: dict[str, Any] = {}
    checkpoints.on_save_checkpoint(trainer, module, content)
    checkpoints.on_load_checkpoint(trainer, module, content)
    assert not capsys.readouterr().out
    trainer.datamodule.train_set = range(25)
    checkpoints.on_load_checkpoint(trainer, module, content)
    assert "not bit by bit: training masks 20 -> 25" in capsys.readouterr().out
    del content[MADE]["training masks"]  # as an older version wrote it
    checkpoints.on_load_checkpoint(trainer, module, content)
    assert not capsys.readouterr().out


def checkpoint(path: Path, step: int, *, complete: bool = False, age: float = 0.0) -> None:
    about = describe("autoencoder", {}, complete=complete, data="")
    state: dict[str, Any] = {"loops": {}, "optimizer_states": [], "lr_schedulers": []}
    torch.save({"state_dict": {"w": torch.ones(2, 3)}, "global_step": step, KEY: about} | state, path)
    os.utime(path, (path.stat().st_mtime - age,) * 2)


def to_resume(folder: Path, **train: Any) -> Stage1Cfg:
    return Stage1Cfg(train=TrainerCfg(run_dir=str(folder), resume="auto", **train))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "nowhere"])
def test_resume_takes_the_newest_whole_checkpoint_and_says_which(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "best.ckpt", 2, age=60)
    checkpoint(tmp_path / "last.ckpt", 4)
    found = find_resume(to_resume(tmp_path), "autoencoder")
    assert found
    assert found.content["global_step"] == 4
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").unlink()
    if damage == "nowhere":  # a link to parts that were not copied
        (tmp_path / "last.ckpt").symlink_to("last-4")
    else:
        bad = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no model"}[damage]
        (tmp_path / "last.ckpt").write_bytes(bad)
    with pytest.warns(UserWarning, match=r"last\.ckpt.*trying an older one"):
        found = find_resume(to_resume(tmp_path), "autoencoder")
    assert found
    assert found.content["global_step"] == 2
    assert f"resuming from {tmp_path / 'best.ckpt'}" in capsys.readouterr().out
    (tmp_path / "best.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError), pytest.warns(UserWarning, match="trying an older one"):  # nothing begins anew
        find_resume(to_resume(tmp_path), "autoencoder")


def test_resume_takes_the_furthest_checkpoint_whenever_its_file_was_written(tmp_path: Path) -> None:
    """A folder that was copied has the times of the copying."""
    checkpoint(tmp_path / "last.ckpt", 9000, age=60)
    checkpoint(tmp_path / "best.ckpt", 500)
    found = find_resume(to_resume(tmp_path), "autoencoder")
    assert found
    assert found.content["global_step"] == 9000
    checkpoint(tmp_path / "kept.ckpt", 9000, age=120)
    found = find_resume(to_resume(tmp_path), "autoencoder")
    assert found
    assert found.path.name == "last.ckpt"


def test_a_resumed_training_holds_no_copy_of_the_weights_it_reads_again() -> None:
    filters = torch.ones(2, 3, 3, 3).to(memory_format=torch.channels_last)
    content = {"state_dict": {"net.f": filters, "autoencoder.f": filters}, "optimizer_states": [{"x": filters}], "a": 1}
    held = lighter(content, "autoencoder.")
    assert held["state_dict"]["net.f"].is_meta
    assert held["state_dict"]["autoencoder.f"] is filters
    assert (held["optimizer_states"], held["a"]) == ([], 1)
    assert as_before(TrainerCfg(precision="fp32"), held).channels_last == "on"
    assert {name: x.shape for name, x in held["state_dict"].items()} == dict.fromkeys(held["state_dict"], filters.shape)


def test_resuming_shows_what_differs_and_says_when_there_is_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "last.ckpt", 1000, complete=True)
    cfg = to_resume(tmp_path, log_every=7)
    found = find_resume(cfg, "autoencoder")
    assert found
    assert found.changed == ["train.log_every: 25 -> 7"]
    assert found.nothing_to_do(cfg.train)
    assert "nothing to do" in capsys.readouterr().out
    assert not found.nothing_to_do(TrainerCfg(max_steps=1001))
    checkpoint(tmp_path / "last.ckpt", 1000)  # stopped before it could be marked as complete
    found = find_resume(cfg, "autoencoder")
    assert found
    assert not found.nothing_to_do(cfg.train)


def test_weights_alone_and_doctored_configs_are_nothing_to_resume_from(tmp_path: Path) -> None:
    weights, path = tmp_path / "weights.ckpt", tmp_path / "last.ckpt"
    about = describe("autoencoder", {}, complete=True, data="")
    torch.save({"state_dict": {}, "global_step": 1, KEY: about}, weights)
    with pytest.raises(CheckpointError, match=r"has no loops, so that a training cannot go on from it; .*--init"):
        find_resume(Stage1Cfg(train=TrainerCfg(resume=str(weights))), "autoencoder")
    weights.unlink()
    checkpoint(path, 1)
    for config in ({"data": 5}, {"surprise": 1}, None):
        torch.save(torch.load(path, weights_only=True) | {KEY: about | {"config": config}}, path)
        with pytest.raises(CheckpointError, match="its weights and its config do not fit"):
            find_resume(to_resume(tmp_path), "autoencoder")


def test_a_training_killed_before_it_could_say_that_it_is_complete_is_put_right(tmp_path: Path) -> None:
    checkpoint(tmp_path / "last.ckpt", 1000, complete=True)
    describe_run(tmp_path, "autoencoder", "", "unfinished")
    assert newest_complete(str(tmp_path), "autoencoder", "") is None
    found = find_resume(to_resume(tmp_path), "autoencoder")
    assert found
    assert found.nothing_to_do(TrainerCfg())
    assert newest_complete(str(tmp_path), "autoencoder", "") == tmp_path / "last.ckpt"


def test_the_stage_1_that_is_taken_is_the_newest_finished_one_of_the_data(tmp_path: Path) -> None:
    def stage(name: str, age: float, kind: str = "autoencoder", data: str = "d", status: str = "complete") -> Path:
        path = tmp_path / name / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
        describe_run(path.parent, kind, data, status)
        return path

    stage("old", 60)
    wanted = stage("quickstart/stage1", 30)
    stage("other", 0, data="e")
    stage("second", 0, kind="diffusion")
    stage("stopped", 0, status="unfinished")
    stage("gone", 0).unlink()
    assert newest_complete(str(tmp_path), "autoencoder", "d") == wanted


def test_another_network_than_the_checkpoints_is_refused_with_both_shapes(tmp_path: Path) -> None:
    require_fit(tmp_path, {"weight": torch.ones(4, 3), "bias": torch.ones(4)}, nn.Linear(3, 4), [])
    with pytest.raises(CheckpointError, match=r"bias has shape \(4,\) there and \(5,\) here.*width: 4 -> 5"):
        require_fit(tmp_path, {"weight": torch.ones(4, 3), "bias": torch.ones(4)}, nn.Linear(3, 5), ["width: 4 -> 5"])


def test_what_auto_was_measured_to_be_is_kept_by_a_resume() -> None:
    plain, last = torch.ones(2, 3, 3, 3), torch.ones(2, 3, 3, 3).to(memory_format=torch.channels_last)
    auto = TrainerCfg()
    for filters, precision, layout in ((plain, "32-true", "off"), (last, "bf16-mixed", "on")):
        kept = as_before(auto, {"state_dict": {"f": filters}, MADE: {"precision": precision}})
        assert kept.channels_last == layout
        assert kept.precision == {"32-true": "fp32", "bf16-mixed": "bf16-mixed"}[precision]
        named = TrainerCfg(precision="fp32", channels_last="off")
        assert as_before(named, {"state_dict": {"f": filters}, MADE: {"precision": precision}}) == named
        shared = as_before(TrainerCfg(strategy="fsdp"), {"state_dict": {"f": filters}, MADE: {"precision": precision}})
        assert shared.channels_last == "auto"  # "on" would be refused there


def test_another_batch_size_goes_on_after_the_masks_seen() -> None:
    """Seven batches of 16 masks are 28 of 4; an epoch has ten of those."""
    names = ("ready", "started", "processed", "completed")
    progress: dict[str, Any] = {"total": dict.fromkeys(names, 7), "current": dict.fromkeys(names, 3)}
    move(progress, 16, 4, 10)
    assert progress == {
        "total": dict.fromkeys(names, 28), "current": dict.fromkeys(names, 8), "is_last_batch": False,
    }  # fmt: skip


@pytest.mark.parametrize(("error", "code", "said"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "--data.batch-size"),
    (MemoryError(), 1, "--data.batch-size"),
    (KeyboardInterrupt(), 130, "interrupted"),
])  # fmt: skip
def test_running_out_of_memory_and_ctrl_c_end_in_one_sentence(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, refuse_kindly("train_stage_2"):
        raise error
    assert end.value.code == code
    assert said in capsys.readouterr().err


def test_an_export_that_is_not_as_told_beside_it_is_refused(tmp_path: Path) -> None:
    from models.checkpoint import read_checkpoint
    from models.export import write_export

    path = tmp_path / "model.safetensors"
    write_export(path, {"w": torch.ones(100)}, describe("diffusion", {}, complete=True, data=""))
    path.with_suffix(".json").write_text(json.dumps({"sha256": file_hash(path)}))
    read_checkpoint(path, "diffusion", "x")
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1  # in a weight, where nothing else would notice
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"SHA-256 is not the one that model\.json tells"):
        read_checkpoint(path, "diffusion", "x")


def test_a_missing_gpu_ends_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    import lightning

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")  # asking for one is no fault then
    with pytest.raises(SystemExit) as end, refuse_kindly("train_stage_1"):
        lightning.Trainer(accelerator="gpu", devices=1, logger=False)
    assert end.value.code == 2
    assert "gpu" in capsys.readouterr().err.lower()


def test_a_port_that_is_taken_or_none_at_all_is_refused_where_processes_are_to_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MASTER_PORT", *LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    require_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for bad in (port, "", "http", "-1", "70000"):
            monkeypatch.setenv("MASTER_PORT", bad)
            with pytest.raises(ConfigError, match=f"MASTER_PORT is '{bad}', where the processes .* cannot meet"):
                require_port()
        monkeypatch.setenv("MASTER_PORT", port)
        monkeypatch.setenv("RANK", "0")  # a launcher's, which listens there itself
        require_port()
    monkeypatch.delenv("RANK")
    require_port()


def test_a_machine_that_no_other_can_reach_by_its_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.7")
    require_address()
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")  # as Debian and Ubuntu write /etc/hosts
    with pytest.raises(ConfigError, match=r"stands for 127\.0\.1\.1, .* GLOO_SOCKET_IFNAME"):
        require_address()

    def unknown(name: str) -> str:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    with pytest.raises(ConfigError, match=r"stands for no address, .* GLOO_SOCKET_IFNAME"):
        require_address()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # all of them are this machine
    require_address()
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    require_address()


@pytest.mark.parametrize(("variables", "found"), [
    ({}, []),
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"}, [LightningEnvironment]),  # sbatch, and the command by itself
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, [LightningEnvironment]),  # which is none of the job's tasks
    ({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "2"}, [SLURMEnvironment]),  # srun, a task for each process
    ({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "4", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}, []),  # torchrun's
    ({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "4"}, None),
])  # fmt: skip
def test_tasks_of_slurm_are_taken_for_processes_only_where_srun_started_these(
    variables: dict[str, str], found: list[type] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cfg = TrainerCfg(devices=2, accelerator="cpu")
    if found is None:
        with pytest.raises(ConfigError, match=r"srun has started 4 processes, but the training has 2 .*launch\.slurm"):
            require_processes(cfg)
        return
    require_processes(cfg)
    assert [type(plugin) for plugin in starters()] == found


def test_sharing_out_inside_machines_of_one_process_is_refused() -> None:
    cfg = TrainerCfg(strategy="hybrid", devices=1, nodes=8, run_dir="x")
    with pytest.raises(ConfigError, match=r"each of the 8 machines has one process.*take ddp, or fsdp"):
        require_processes(cfg)


def test_what_a_checkpoint_tells_lightning_to_call_is_not_called(
    tiny_autoencoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(os, "system", called.append)
    content: dict[str, Any] = {
        "state_dict": tiny_autoencoder.state_dict(), "hyper_parameters": {"_instantiator": "os.system", "command": "x"},
    }  # fmt: skip
    tiny_autoencoder.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    load_autoencoder(tmp_path / "a.ckpt")
    assert not called
