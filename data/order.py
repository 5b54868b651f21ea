"""Which mask comes when, and its random draws: pure functions of (seed, epoch, index), so a run can be repeated."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from data.masks import DataError

FLIP, AUGMENT = 1, 2  # independent streams of draws
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser on uint64 (Steele, Lea and Flood 2014)."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(seed: int, epoch: np.ndarray, index: np.ndarray, stream: int) -> np.ndarray:
    """Random 64-bit numbers [B] for epochs [B] and indices [B]."""
    state = _mix(np.array([seed], np.uint64))
    for key in (np.array([stream], np.uint64), epoch.astype(np.uint64), index.astype(np.uint64)):
        state = _mix(state ^ key)
    return state


def uniform(seed: int, epoch: np.ndarray, index: np.ndarray, stream: int) -> np.ndarray:
    """Random numbers [B] in [0, 1), 53 bits each."""
    return (draw(seed, epoch, index, stream) >> np.uint64(11)).astype(np.float64) / 2.0**53


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) keys of one rank: the share ``[rank::world]`` of a shuffle that depends on (seed, epoch) alone.

    All ranks get equally many, with ``group`` above 1 whole groups of batches; what is left over waits for another
    epoch. The epoch travels with each index, so that loader processes which outlive an epoch draw the right
    augmentation.

    Args:
        group: batches of one update of the weights (train.accumulate).
        batches_done: batches of this rank that the training has finished so far, when it can be asked. It then decides
            the epoch and how many batches of it to leave out, which makes a resumed run go on with the batches not
            yet seen. Otherwise the epoch is what ``set_epoch`` said, and starts at its first batch.

    Raises:
        DataError: fewer masks than processes, or than one update of the weights wants of each.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1,
        batches_done: Callable[[], int] | None = None, group: int = 1,
    ) -> None:  # fmt: skip
        if size < world:
            raise DataError(f"{size} training masks cannot be shared by {world} processes; use fewer devices")
        self.size, self.batch_size, self.seed, self.rank, self.world = size, batch_size, seed, rank, world
        self.batches_done = batches_done
        self.share = size // world
        if group > 1:
            self.share -= self.share % (group * batch_size)
            if self.share == 0:
                raise DataError(
                    f"train.accumulate is {group}, but each process has only {size // world // batch_size} batches of "
                    f"{batch_size} masks in an epoch: lower train.accumulate or data.batch_size"
                )
        self.epoch = 0

    def __len__(self) -> int:
        return self.share

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _position(self) -> tuple[int, int]:
        """(epoch, masks of it that this rank has seen)."""
        if self.batches_done is None:
            return self.epoch, 0
        epoch, batches = divmod(self.batches_done(), max(1, len(self) // self.batch_size))
        return epoch, batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, seen = self._position()
        shuffled = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.size)
        share = shuffled[: len(self) * self.world][self.rank :: self.world]
        return iter([(epoch, int(index)) for index in share[seen:]])
