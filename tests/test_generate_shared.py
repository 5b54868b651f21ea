"""One generation by several processes, stopped and resumed, and in memory that does not grow with it."""

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from generation import FakeModule, cfg_for, files, rows
from hypothesis import given
from hypothesis import strategies as st

from configs.checks import ConfigError
from configs.generate_cfg import GenerateCfg
from configs.sampler_cfg import DDPMCfg, ShortcutCfg
from scripts import generate_masks
from scripts.generate_masks import generate_to_folder
from scripts.mask_files import MaskFileError, Plan
from scripts.ranks import Ranks

ROOT = Path(__file__).parents[1]


class ThreadRanks(Ranks):
    """Ranks that are threads of one process."""

    def agree(self, ok: bool = True) -> bool:
        barrier, answers = self.group
        answers[self.rank] = ok
        barrier.wait(30)
        everyone = all(answers)
        barrier.wait(30)
        return everyone


def in_threads(world: int, work: Callable[[Ranks], object]) -> None:
    group = threading.Barrier(world), [False] * world
    threads = [threading.Thread(target=work, args=(ThreadRanks(rank, world, group),)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def contents(folder: Path) -> dict[str, bytes]:
    """What a generation leaves behind, all of it but its settings."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "config.json"}


@given(st.integers(0, 200), st.integers(1, 17))
def test_shares_are_consecutive_equal_within_one_and_whole(count: int, world: int) -> None:
    shares = [Ranks(rank, world).share(count) for rank in range(world)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("sampler", [ShortcutCfg(), DDPMCfg(timesteps=20, steps=8)], ids=["shortcut", "ddpm"])
def test_files_and_manifest_are_those_of_one_process_whatever_their_number_and_batch_size(
    sampler: Any, checkpoint: str, tmp_path: Path
) -> None:
    base = cfg_for(checkpoint, tmp_path / "1", steps=(1, 4))
    alone = contents(generate_to_folder(FakeModule(sampler), base))
    assert len(alone) == 2 * 5 * 2 + len(["manifest.jsonl", "grid.png"])
    for world, batch_size in ((2, 64), (3, 2), (12, 1)):  # of twelve, two have nothing to do
        cfg = replace(base, out=str(tmp_path / f"{world}"), batch_size=batch_size)
        in_threads(world, lambda ranks, cfg=cfg: generate_to_folder(FakeModule(sampler), cfg, ranks))
        assert contents(Path(cfg.out)) == alone


def test_a_folder_that_the_first_process_refuses_stops_them_all(checkpoint: str, tmp_path: Path) -> None:
    cfg, stopped = cfg_for(checkpoint, tmp_path / "used"), []
    generate_to_folder(FakeModule(ShortcutCfg()), cfg)

    def work(ranks: Ranks) -> None:
        with pytest.raises((FileExistsError, SystemExit)) as stop:
            generate_to_folder(FakeModule(ShortcutCfg()), cfg, ranks)
        stopped.append((ranks.rank, stop.type))

    in_threads(2, work)
    assert sorted(stopped) == [(0, FileExistsError), (1, SystemExit)]


def test_resuming_draws_what_is_missing_and_ends_with_the_same_files(checkpoint: str, tmp_path: Path) -> None:
    cfg = cfg_for(checkpoint, tmp_path / "out", num=9, threshold=0.999, batch_size=4)
    whole = contents(generate_to_folder(FakeModule(ShortcutCfg()), cfg))
    out = Path(cfg.out)
    (out / "manifest.jsonl").rename(out / ".manifest.jsonl.part")  # as a stopped generation leaves it
    for name in ("a-cat-0008.png", "a-giraffe-0001.png", "grid.png"):
        (out / name).unlink()
    (out / ".a-cat-0008.png.part").write_bytes(b"half a")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png") if path.name != "a-cat-0002.png"}
    (out / "a-cat-0002.png").write_bytes(b"")  # as a machine leaves it that lost its power

    module = FakeModule(ShortcutCfg())
    generate_to_folder(module, replace(cfg, resume=True, batch_size=64))
    assert module.calls == [3]
    assert contents(out) == whole
    assert all((out / name).stat().st_mtime_ns == then for name, then in before.items())
    generate_to_folder(module, replace(cfg, resume=True))  # nothing is missing
    assert module.calls == [3]
    assert contents(out) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed 0, and these settings have 1"),
        ({"num": 10}, r"file_name 'a-giraffe-0000.png', and these settings have 'a-cat-0009.png'"),
        ({"prompt": ("a cat",)}, "file_name 'a-giraffe-0000.png', and these settings have None"),
        ({"threshold": 0.4}, "threshold 0.5, and"),
        ({"one_bit": True}, "one_bit False, and"),
    ],
    ids=str,
)
def test_resuming_with_settings_that_make_other_files_is_refused(
    change: dict[str, Any], said: str, checkpoint: str, tmp_path: Path
) -> None:
    cfg = cfg_for(checkpoint, tmp_path / "out", num=9)
    before = contents(generate_to_folder(FakeModule(ShortcutCfg()), cfg))
    with pytest.raises(ConfigError, match=said):
        generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, resume=True, **change))
    assert contents(Path(cfg.out)) == before


def test_resume_wants_a_folder_that_holds_a_generation(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out"):
        GenerateCfg(checkpoint, prompt=("x",), resume=True)
    with pytest.raises(ConfigError, match="overwrite"):
        GenerateCfg(checkpoint, prompt=("x",), resume=True, out="x", overwrite=True)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="no generation to resume"):
        generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path, resume=True))
    out = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "new", resume=True))
    assert len(files(out)) == len(rows(out)) == 10


def test_a_stopped_generation_leaves_whole_files_and_says_how_to_go_on(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = cfg_for(checkpoint, tmp_path / "out", num=9, batch_size=4)
    whole = contents(generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, out=str(tmp_path / "whole"))))
    real_write, written = Path.write_bytes, []

    def full_disk(path: Path, data: Any) -> int:
        written.append(path)
        if len(written) < 7:
            return real_write(path, data)
        real_write(path, bytes(data)[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(MaskFileError, match=r"No space left on device.*--resume True"):
        generate_to_folder(FakeModule(ShortcutCfg()), cfg)
    monkeypatch.undo()
    out = Path(cfg.out)
    assert not (out / "manifest.jsonl").exists()
    assert 6 <= len(files(out)) < 18
    assert all(whole[name] == content for name, content in files(out).items())
    with pytest.raises(FileExistsError, match="--resume True"):
        generate_to_folder(FakeModule(ShortcutCfg()), cfg)
    generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, resume=True))
    assert contents(out) == whole


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that wants the folder: it says "held", and keeps it until its input ends."""
    code = (
        "import sys; from pathlib import Path; from configs.run_folder import lock\n"
        "lock(Path(sys.argv[1]))\nprint('held', flush=True)\nsys.stdin.read()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_folder_belongs_to_one_generation_until_its_end(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, drawn, refused = cfg_for(checkpoint, tmp_path / "out"), generate_masks.draw_masks, []

    def while_another_asks(*how: Any) -> Any:
        refused.append(holder(tmp_path / "out").communicate()[1])
        return drawn(*how)

    monkeypatch.setattr(generate_masks, "draw_masks", while_another_asks)
    out = generate_to_folder(FakeModule(ShortcutCfg()), cfg)
    monkeypatch.undo()
    assert [f"is at work in {out} (process {os.getpid()} on" in said for said in refused] == [True]
    whole = contents(out)
    assert len(whole) == 10 + len(["manifest.jsonl", "grid.png"])

    other = holder(out)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(ConfigError, match=rf"another generation is at work in .*process {other.pid} on .* --out"):
            generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, **how))
    assert {name: content for name, content in contents(out).items() if name != ".lock"} == whole
    other.kill()
    other.communicate()
    generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, resume=True))
    assert contents(out) == whole


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_generation_that_was_stopped_before_it_had_a_plan_leaves_an_empty_folder(
    how: dict[str, Any], checkpoint: str, tmp_path: Path
) -> None:
    for name in (".lock", ".manifest.jsonl.part.new"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("{")
    out = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "out", **how))
    assert len(files(out)) == len(rows(out)) == 10
    assert not list(out.glob(".*"))


def test_memory_does_not_grow_with_the_number_of_masks(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_masks, "write_masks", lambda *_: time.sleep(0.01))  # slower than drawing
    monkeypatch.setattr(generate_masks, "draw_grid", lambda *_: None)
    monkeypatch.setattr(generate_masks, "file_hash", lambda _: "")  # reads through a buffer larger than all of this

    def peak(num: int) -> int:
        cfg = cfg_for(checkpoint, tmp_path / "out", num=num, threshold=0.999, batch_size=100, overwrite=True)
        tracemalloc.start()
        generate_to_folder(FakeModule(ShortcutCfg()), cfg)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(500)  # imports and caches
    assert peak(10_000) < 1.5 * peak(500)  # all masks waiting: 3.5 times


def test_a_plan_lists_nothing() -> None:
    plan = Plan(["a cat", "a dog"], ["a-cat", "a-dog"], 10**12, 5, [1], {})
    assert len(plan) == 2 * 10**12
    assert plan.about(10**12 + 3, 1) == {"file_name": "a-dog-0003.png", "text": "a dog", "seed": 8, "steps": 1}
    assert next(plan.lines()) == '{"file_name": "a-cat-0000.png", "text": "a cat", "seed": 5, "steps": 1}\n'


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(checkpoint: str, tmp_path: Path) -> None:
    def start(out: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.generate_worker", checkpoint, str(tmp_path / out)], cwd=ROOT, text=True,
            env=os.environ | {"PYTHONPATH": "tests", "OMP_NUM_THREADS": "1"} | env, stderr=subprocess.PIPE,
        )  # fmt: skip

    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [start("one"), *(start("two", RANK=rank, **launch) for rank in "01")]
    for process in started:
        assert process.communicate(timeout=120)[1].count("Error") == process.returncode == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
