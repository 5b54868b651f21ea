"""Freed memory is kept for the next step."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.run import LARGEST_MMAP_THRESHOLD, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory

ROOT = Path(__file__).parents[1]
COUNT = """
import resource, torch
from scripts.run import refuse_kindly
def step():
    return [torch.ones(3_000_000) for _ in range(4)]  # 46 MiB, in pieces of 11
with refuse_kindly("x"):
    for _ in range(10):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is the one that is told")
def test_commands_do_not_ask_for_freed_memory_anew() -> None:
    """Without it, each step asks for all of its pages in most runs."""
    done = subprocess.run([sys.executable, "-c", COUNT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5 * 4 * 12_000_000 // 4096 / 4  # page faults


class Library:
    def __init__(self, told: list[tuple[int, int]]) -> None:
        self.mallopt = lambda name, value: told.append((name, value))


def test_the_allocator_is_told_once_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library(told))
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.setenv(name, "131072")
        keep_freed_memory()
        monkeypatch.delenv(name)
    assert told == []
    keep_freed_memory()
    assert told == [(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD), (M_TRIM_THRESHOLD, -1)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library that cannot be told
    keep_freed_memory()
