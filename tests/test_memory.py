"""Freed memory is kept for the next step."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.run import KEEP, keep_freed_memory

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


def test_the_allocator_is_told_what_the_environment_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library(told))
    asked = [(parameter, value) for parameter, (value, _) in KEEP.items()]
    for variable in ("GLIBC_TUNABLES", *(name for _, names in KEEP.values() for name in names)):
        monkeypatch.delenv(variable, raising=False)
    keep_freed_memory()
    assert told == asked
    for parameter, (_, variables) in KEEP.items():
        for variable in variables:
            told.clear()
            with monkeypatch.context() as within:
                within.setenv(variable, "131072")
                keep_freed_memory()
            assert told == [(other, value) for other, value in asked if other != parameter]
    told.clear()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    keep_freed_memory()
    assert told == []
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library that cannot be told
    keep_freed_memory()
