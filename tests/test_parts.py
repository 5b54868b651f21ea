"""Checkpoints in parts: whole or not there, and folders of strangers run nothing."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from configs.checks import ConfigError
from configs.trainer_cfg import OptimCfg, TrainerCfg
from configs.whole_file import same_file, sweep, write_text
from models import parts
from models.checkpoint import CheckpointError, describe, read_checkpoint
from models.export import KEY
from models.hardware import faster_format, set_memory_format
from models.optim import build_optimizer

TENSORS = {"state_dict.net.a": torch.arange(6.0).reshape(2, 3), "state_dict.autoencoder.b": torch.tensor(2.0)}


def write(path: Path, step: int = 1, **changes: torch.Tensor) -> Path:
    path.parent.mkdir(exist_ok=True)
    about = {KEY: describe("diffusion", {}, complete=True, data="x"), "global_step": step, parts.GROUPS: []}
    parts.write_parts(path, TENSORS | changes, about, first=True)
    return path


def read(path: Path) -> dict[str, Any]:
    return read_checkpoint(path, "diffusion", "the command")


def test_links_name_whole_folders_and_old_ones_are_removed(tmp_path: Path) -> None:
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    for step in (1, 2):
        content = read(write(last, step))
        assert content["global_step"] == step
        assert content["state_dict"].keys() == {"net.a", "autoencoder.b"}
        torch.testing.assert_close(content["state_dict"]["net.a"], TENSORS["state_dict.net.a"], rtol=0, atol=0)
    assert len(list(tmp_path.glob("*.parts"))) == 1
    write(best, 2)
    same_file(best, last)
    assert os.readlink(best) == os.readlink(last)
    write(last, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt", "best-2-1.parts", "last-3-1.parts"}
    assert (read(best)["global_step"], read(last)["global_step"]) == (2, 3)


def test_a_file_gives_way_to_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"one file")
    assert read(write(path))["global_step"] == 1


def test_a_copy_of_a_run_with_folders_in_the_place_of_links_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "run" / "last.ckpt")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # follows links
    last, best = tmp_path / "copy" / "last.ckpt", tmp_path / "copy" / "best.ckpt"
    assert last.is_dir()
    assert not last.is_symlink()
    assert read(write(last, 2))["global_step"] == 2
    shutil.copytree(last, best)
    same_file(last, best)
    assert read(best)["global_step"] == 2
    best.unlink()
    shutil.copytree(last, best)
    write_text(best, "one file")
    assert best.is_file()
    assert {path.name for path in best.parent.iterdir()} == {"best.ckpt", "last.ckpt", "last-2-1.parts"}


def test_no_other_folder_gives_way(tmp_path: Path) -> None:
    mine = tmp_path / "last.ckpt" / "mine"
    mine.mkdir(parents=True)
    for write_there in (lambda: write(mine.parent), lambda: write_text(mine.parent, "one file")):
        with pytest.raises((OSError, RuntimeError), match="directory"):
            write_there()
    assert mine.is_dir()


def test_a_backup_beside_them_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt")
    for name in ("backup-of-step-1.parts", "mine-1-1.parts"):
        shutil.copytree(path, tmp_path / name)
    write(path, 2)
    assert {file.name for file in tmp_path.glob("*.parts")} == {
        "last-2-1.parts", "backup-of-step-1.parts", "mine-1-1.parts"
    }  # fmt: skip


@pytest.mark.parametrize("broken", ["write", "finish"])
def test_a_failure_leaves_the_old_one_and_nothing_else(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "last.ckpt")
    before = sorted(file.name for file in tmp_path.iterdir())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if broken == "finish":
        monkeypatch.setattr(parts, "write_whole", full)
    else:
        monkeypatch.setattr("torch.distributed.checkpoint.hf_storage.HuggingFaceStorageWriter.write_data", full)
    with pytest.raises(RuntimeError, match="No space left on device"):
        write(path, 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    assert read(path)["global_step"] == 1


def test_what_a_killed_program_left_half_written_is_swept(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt")
    (tmp_path / ".last.ckpt.abc.part").mkdir()
    (tmp_path / ".last.ckpt.abc.part" / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert read(path)["global_step"] == 1


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.path / 'ran')!r}, 'w')",)


def part_of(folder: Path) -> Path:
    return next(iter(folder.glob("*.safetensors")))


def with_metadata(folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(folder.parent)))


def evil_about(folder: Path) -> None:
    torch.save({"x": Evil(folder.parent)}, folder / "about.pt")


def foreign(folder: Path) -> None:
    with_metadata(folder)
    (folder / "about.pt").unlink()


def cut(folder: Path) -> None:
    part_of(folder).write_bytes(part_of(folder).read_bytes()[:-4])


def one_more(folder: Path) -> None:
    (folder / "shard-00002-model-00001-of-00001.safetensors").write_bytes(part_of(folder).read_bytes())


def of_another_size(folder: Path) -> None:
    """The same number of bytes, and headers that tell of other shapes."""
    part, tensors = part_of(folder), load_file(part_of(folder))
    content = part.read_bytes().replace(b"[2,3]", b"[3,2]")
    assert content != part.read_bytes()
    assert tensors
    part.write_bytes(content)


def renamed(folder: Path) -> None:
    part = part_of(folder)
    part.write_bytes(part.read_bytes().replace(b"net.a", b"net.z"))


@pytest.mark.parametrize(
    ("doctor", "message"),
    [
        (with_metadata, r"\.metadata is no part of it"), (evil_about, "is damaged or not a checkpoint"),
        (foreign, "is a folder, not a checkpoint file"), (cut, "has .* bytes in place of"),
        (lambda folder: part_of(folder).unlink(), "has no bytes in place of"), (one_more, "is no part of it"),
        (of_another_size, "do not make up"), (renamed, "hold other tensors than it lists"),
    ],
)  # fmt: skip
def test_a_doctored_or_damaged_folder_is_refused_and_nothing_is_run(
    doctor: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "last.ckpt")
    doctor(path.resolve())
    with pytest.raises(CheckpointError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_optimiser_states_by_name_are_those_by_number() -> None:
    net = nn.Linear(3, 2)
    optimizer = build_optimizer(net, OptimCfg(), 10)["optimizer"]
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    by_number = optimizer.state_dict()
    names = [name for group in optimizer.param_groups for p in group["params"]
             for name, own in net.named_parameters() if own is p]  # fmt: skip
    by_name = {
        "state": {names[number]: state for number, state in by_number["state"].items()},
        "param_groups": [group | {"params": [names[number] for number in group["params"]]}
                         for group in by_number["param_groups"]],
    }  # fmt: skip
    tensors, rest = parts.apart({"state_dict": net.state_dict(), "optimizer_states": [by_name], "loops": 3})
    again = parts.together(tensors, rest)
    assert again["loops"] == 3
    assert again["state_dict"].keys() == net.state_dict().keys()
    (state,) = again["optimizer_states"]
    assert state["param_groups"] == by_number["param_groups"]
    for number, moments in by_number["state"].items():
        for name, value in moments.items():
            assert state["state"][number][name].equal(value)


def test_parts_are_for_strategies_that_share_weights_out() -> None:
    with pytest.raises(ConfigError, match=r"train\.checkpoint_parts is True.*only fsdp and hybrid"):
        TrainerCfg(checkpoint_parts=True)
    with pytest.raises(ConfigError, match=r"train\.channels_last is 'on'"):
        TrainerCfg(strategy="fsdp", channels_last="on")


def test_memory_formats_are_timed_on_a_part_of_the_batch() -> None:
    """Otherwise it takes a minute where a step takes eight seconds (icons, AVX2)."""
    seen: list[tuple[int, ...]] = []

    class Net(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(x.shape))
            return super().forward(x)

    for rows in (256, 5):
        seen.clear()
        faster_format("auto", Net(4, 4, 3), (torch.randn(rows, 4, 8, 8),), False)
        assert set(seen) == {(min(rows, 64), 4, 8, 8)}


def test_weights_that_are_shared_out_stay_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    """fully_shard refuses every other layout, also where it would be faster."""
    monkeypatch.setattr("models.hardware.seconds", lambda run, _: 0.0)
    net = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    for strategy in ("fsdp", "hybrid"):
        cfg = TrainerCfg(strategy=strategy, accelerator="cpu", precision="fp32")  # type: ignore[arg-type]  # literals
        set_memory_format(net, net, (), cfg)
        assert net.weight.is_contiguous()
