"""Processes that share the work of one command, started by torchrun on one machine or many."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any


def launched() -> tuple[int, int]:
    """(rank, number of processes) as torchrun says them in the environment; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Ranks:
    """This process among ``world`` of them."""

    rank: int = 0
    world: int = 1
    group: Any = None
    """What connects them (a process group of torch.distributed)."""

    def share(self, count: int) -> range:
        """This process's part of 0 ... count-1: consecutive, and nobody has two more than another."""
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def agree(self, ok: bool = True) -> bool:
        """Wait for all processes; whether every one of them is well."""
        if self.world == 1:
            return ok
        import torch
        from torch import distributed as dist

        answer = torch.tensor(int(ok))
        dist.all_reduce(answer, dist.ReduceOp.MIN, group=self.group)
        return bool(answer)

    def first(self, action: Callable[[], object]) -> None:
        """Let the first process do something while the others wait; where it raises, they exit with 2."""
        done = self.rank != 0
        try:
            if self.rank == 0:
                action()
                done = True
        finally:
            everyone = self.agree(done)
        if not everyone:
            raise SystemExit(2)


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this launch, connected while the block runs."""
    rank, world = launched()
    if world == 1:
        yield Ranks()
        return
    from torch import distributed as dist

    dist.init_process_group("gloo")
    try:
        yield Ranks(rank, world, dist.new_group(timeout=timedelta(days=30)))  # as long as the slowest one works
    finally:
        dist.destroy_process_group()
