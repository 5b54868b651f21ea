"""Freed memory is kept for the next step."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.run import M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, TOLD_BY_THE_USER, keep_freed_memory

ROOT = Path(__file__).parents[1]
COUNT = """
import resource, torch
from scripts.run import refuse_kindly
def step():
    return [torch.ones({size}) for _ in range(4)]
with refuse_kindly("x"):
    for _ in range(10):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is the one that is told")
@pytest.mark.parametrize("size", [3_000_000, 16_000_000])  # 11 MiB, and 61: a mapping of its own, if it may have one
def test_commands_do_not_ask_for_freed_memory_anew(size: int) -> None:
    """Without it, each step asks for all of its pages in most runs."""
    count = COUNT.replace("{size}", str(size))
    done = subprocess.run([sys.executable, "-c", count], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5 * 4 * 4 * size // 4096 / 4  # page faults


class Library:
    def __init__(self, told: list[tuple[int, int]]) -> None:
        self.mallopt = lambda name, value: told.append((name, value))


def test_the_allocator_is_told_once_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library(told))
    for name in TOLD_BY_THE_USER:
        monkeypatch.setenv(name, "131072")
        keep_freed_memory()
        monkeypatch.delenv(name)
    assert told == []
    keep_freed_memory()
    assert told == [(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library that cannot be told
    keep_freed_memory()
