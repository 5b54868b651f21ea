"""Freed memory is kept for the next step."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.run import KEEP, M_MMAP_MAX, M_TRIM_THRESHOLD, keep_freed_memory

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
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", count], cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    assert int(done.stdout) < 5 * 4 * 4 * size // 4096 / 4  # page faults


class Library:
    def __init__(self, told: list[tuple[int, int]]) -> None:
        self.mallopt = lambda name, value: told.append((name, value))


def test_the_allocator_is_told_what_the_environment_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library(told))
    for variable in ("GLIBC_TUNABLES", *(name for _, names in KEEP.values() for name in names)):
        monkeypatch.delenv(variable, raising=False)
    asked = [(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)]
    for variable, value, left in (
        ("MALLOC_ARENA_MAX", "2", asked),
        ("MALLOC_MMAP_MAX_", "9", asked[1:]),
        ("MALLOC_MMAP_THRESHOLD_", "9", asked[1:]),
        ("MALLOC_TRIM_THRESHOLD_", "9", asked[:1]),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", asked),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=9", asked[1:]),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=9", asked[:1]),
    ):
        told.clear()
        with monkeypatch.context() as within:
            within.setenv(variable, value)
            keep_freed_memory()
        assert told == left, (variable, value)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library that cannot be told
    keep_freed_memory()
