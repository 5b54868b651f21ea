"""An endless, shuffled stream of training batches from shards, shared out among processes, which can be taken up again.

Each pass over the shards has an order of its own. A lane, which is a loader process of a rank, reads every
``world * lanes``-th shard of it, block after block, and hands out each block in random order. All of that is a
function of (seed, pass, lane), so that a place in the stream is four numbers, and going on reads one block again.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from configs.data_cfg import DataCfg, ShardSource
from data.datasets import Augmenter, Batch, to_tensor
from data.images import shown
from data.masks import DataError, MaskSet
from data.shards import BadShare, Sample, decoded, read_samples, test_shards, train_shards
from data.split import canonical_hashes

_AT_ONCE = 64  # samples that are decoded and compared with held-out ones together
_PER_SHARD = 32  # bits of an index that number the sample in its shard


class Place(NamedTuple):
    """Where a lane goes on."""

    number: int = 0
    """Of the pass."""
    shard: int = 0
    """Among the lane's shards of this pass, of the block's first sample."""
    row: int = 0
    """Of the block's first sample in its shard."""
    taken: int = 0
    """Samples of the block that are done."""


@dataclass(frozen=True)
class Lanes:
    """How the shards are shared out."""

    rank: int = 0
    world: int = 1
    lanes: int = 1
    """Loader processes of a rank."""


class ShardStream(IterableDataset[Batch]):
    """Batches as those of ``ImageDataset``, and "place": int64 [5], the lane and its ``Place`` after the batch.

    A batch's "index" holds the number of the shard in its upper 32 bits, and that of the sample below.
    What cannot be read ends the stream with {"error": a sentence}: loader processes would add tracebacks to exceptions.

    Args:
        held_out: masks that are not to be trained on, nor their copies.

    Raises:
        DataError: fewer shards than processes and their loader processes.
    """

    def __init__(self, cfg: DataCfg, held_out: MaskSet, seed: int, share: Lanes) -> None:
        assert isinstance(cfg.source, ShardSource), cfg.source
        self.shards = train_shards(cfg.source)
        if len(self.shards) < share.world * share.lanes:
            raise DataError(
                f"{len(self.shards)} shards cannot be shared by {share.world} processes with {share.lanes} loaders "
                "each; use fewer --data.workers, or make more shards with a smaller --samples of scripts.make_shards"
            )
        self.cfg, self.source, self.seed, self.share = cfg, cfg.source, seed, share
        self.places, self.next_lane = [Place()] * share.lanes, 0  # the lane of the next batch
        self.known = frozenset(canonical_hashes(held_out.images))
        self.fraction = 0.0 if test_shards(cfg.source) else cfg.val_fraction

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        lane = ((worker.id if worker else 0) + self.next_lane) % self.share.lanes
        try:
            yield from self.batches(lane)
        except (DataError, ModuleNotFoundError) as error:
            yield {"error": str(error)}

    def name(self, index: int) -> str:
        """Shard and number of the sample of a batch's "index"."""
        row = index & ((1 << _PER_SHARD) - 1)
        return f"sample {row} of {shown(self.shards[index >> _PER_SHARD])}"

    def done(self, lane: int, *place: int) -> None:
        """A batch of this lane is being trained on; ``place`` is where the lane goes on."""
        self.places[lane], self.next_lane = Place(*place), (lane + 1) % self.share.lanes

    def state(self) -> dict[str, Any]:
        """What must be the same for the places to mean the same, and the lane of the next batch."""
        listed = hashlib.sha256("\n".join(self.shards).encode(errors="surrogateescape")).hexdigest()
        same = {"processes": self.share.world, "workers": self.share.lanes, "shards": len(self.shards),
                "seed": self.seed, "shuffle": self.source.shuffle, "list": listed}  # fmt: skip
        return {"same": same, "next_lane": self.next_lane}

    def take_up(self, saved: Mapping[str, Any]) -> str:
        """Go on from ``state`` with the "places" [processes][lanes] of all; answers what has changed.

        With other processes, workers or shards, all go on with the pass after the last one that any had begun.
        """
        now, before = self.state()["same"], saved["same"]
        if now == before:
            self.places = [Place(*place) for place in saved["places"][self.share.rank]]
            self.next_lane = saved["next_lane"]
            return ""
        number = 1 + max(place[0] for places in saved["places"] for place in places)
        self.places = [Place(number)] * self.share.lanes
        return ", ".join(f"{name} {before[name]} -> {value}" if name != "list" else "other names of shards"
                         for name, value in now.items() if before[name] != value)  # fmt: skip

    def batches(self, lane: int) -> Iterator[Batch]:
        """All batches of one lane, from its place on."""
        augmented = Augmenter(self.cfg.augment, self.cfg.image_size, self.seed)
        masks = self.masks(lane)
        while True:
            samples, images, prompts, places = zip(*itertools.islice(masks, self.cfg.batch_size), strict=True)
            epochs = np.array([place.number for place in places], np.int64)
            indices = np.array([sample.shard << _PER_SHARD | sample.row for sample in samples], np.int64)
            yield {
                "image": to_tensor(augmented(np.stack(images), epochs, indices)), "prompt": list(prompts),
                "index": torch.from_numpy(indices), "place": torch.tensor([lane, *places[-1]]),
            }  # fmt: skip

    def masks(self, lane: int) -> Iterator[tuple[Sample, np.ndarray, str, Place]]:
        """What one lane trains on, endlessly, each with the place after it. Raises DataError for unusable shards."""
        bad = BadShare(self.source.max_bad)
        start = self.places[lane]
        for number in itertools.count(start.number):
            place = start if number == start.number else Place(number)
            found = place != Place(number)  # a pass of which a part is done had some
            for some, places in self.samples(lane, place):
                usable = decoded(some, self.cfg, self.source.default_prompt, bad)
                bad.require_few(at_least=1000)
                after = {(sample.shard, sample.row): place for sample, place in zip(some, places, strict=True)}
                for sample, image, prompt in self.trained_on(usable):
                    found = True
                    yield sample, image, prompt, after[sample.shard, sample.row]
            bad.require_few()
            if not found:
                raise DataError(f"a process found no mask to train on in its {len(self.order(lane, number))} of "
                                f"{len(self.shards)} shards; use fewer --data.workers, or other shards")  # fmt: skip

    def trained_on(self, usable: list[tuple[Sample, np.ndarray, str]]) -> list[tuple[Sample, np.ndarray, str]]:
        """Those that are not held out; the rule is that of ``data.split``."""
        if not usable:
            return []
        hashes = canonical_hashes(np.stack([image for _, image, _ in usable]))
        limit = self.fraction * 2.0**256
        return [one for one, digest in zip(usable, hashes, strict=True)
                if digest not in self.known and int.from_bytes(digest, "big") >= limit]  # fmt: skip

    def order(self, lane: int, number: int) -> list[int]:
        """Shards of one lane in one pass."""
        shuffled = np.random.Generator(np.random.PCG64([self.seed, number])).permutation(len(self.shards))
        return shuffled[self.share.rank * self.share.lanes + lane :: self.share.world * self.share.lanes].tolist()

    def samples(self, lane: int, start: Place) -> Iterator[tuple[list[Sample], list[Place]]]:
        """One pass of a lane, in the order in which samples are handed out, some at once, with the place after each."""
        mine = self.order(lane, start.number)
        stored = ((i, sample) for i in range(start.shard, len(mine))
                  for sample in read_samples(self.shards, mine[i], start.row if i == start.shard else 0))  # fmt: skip
        taken = start.taken
        while block := list(itertools.islice(stored, self.source.shuffle)):
            first = Place(start.number, block[0][0], block[0][1].row)
            key = [self.seed, start.number, self.share.rank, lane, first.shard, first.row]
            shuffled = np.random.Generator(np.random.PCG64(key)).permutation(len(block)).tolist()
            for begin in range(taken, len(block), _AT_ONCE):
                chosen = range(begin, min(begin + _AT_ONCE, len(block)))
                yield [block[shuffled[k]][1] for k in chosen], [first._replace(taken=k + 1) for k in chosen]
            taken = 0
