"""The LightningDataModule: batches of images, or of cached latents, in an order that can be repeated."""

import sys
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from configs.data_cfg import AugmentCfg, DataCfg
from data.datasets import Batch, ImageDataset, LatentDataset, identity, mirrored, to_tensor
from data.masks import DataError, MaskSet
from data.order import EpochSampler
from data.sources import load_splits, prepare, stream_of
from data.stream import Lanes, ShardStream
from data.versions import with_versions


def _batches_done(trainer: L.Trainer) -> int:
    """Training batches of this rank, finished up to now; restored from a checkpoint before the first epoch begins."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)


class MaskDataModule(L.LightningDataModule):
    """Training and held-out masks of one config.

    Use it with ``Trainer(use_distributed_sampler=False)``: the training order is already shared out among the ranks,
    and every rank sees the whole held-out set. A resumed training goes on with the batches not yet seen.

    Raises:
        DataError: from ``setup``, for data that cannot be used.
    """

    train_set: MaskSet
    """All training masks, or where they come as a stream, some of them."""
    val_set: MaskSet

    def __init__(self, cfg: DataCfg, seed: int) -> None:
        super().__init__()
        self.cfg, self.seed = cfg, seed
        self._moments: Tensor | None = None
        self._with_images = False  # beside the moments
        self._stream: ShardStream | None = None
        self._saved: dict[str, Any] = {}

    @property
    def as_read(self) -> MaskSet:
        """The training masks without the versions made of them."""
        versions = self.cfg.augment.versions
        return self.train_set if versions == 1 else self.train_set.select(range(len(self.train_set) // versions))

    @property
    def streams(self) -> bool:
        """Whether training reads an endless stream in place of ``train_set``."""
        return stream_of(self.cfg) is not None

    def mask_name(self, index: int) -> str:
        """Where the mask of this "index" of a training batch came from."""
        return self._stream.name(index) if self._stream else self.train_set.names[index]

    def batches_an_epoch(self, processes: int, group: int) -> int:
        """Training batches of each process, in whole groups of ``group``; a stream has no end."""
        if self.streams:
            return sys.maxsize
        return max(1, len(self.train_set) // processes // self.cfg.batch_size // group) * group

    def prepare_data(self) -> None:
        prepare(self.cfg)

    def setup(self, stage: str | None = None) -> None:
        """Load both sets, once."""
        if not hasattr(self, "train_set"):
            train, self.val_set = load_splits(self.cfg)
            self.train_set = with_versions(train, self.cfg.augment.versions, self.seed)

    @property
    def variants(self) -> int:
        """How many versions of a training mask there are to cache: 1 (as is) or 2 (as is, mirrored).

        Raises:
            DataError: the augmentation makes endless versions.
        """
        if not self.cfg.augment.only_hflip:
            raise DataError("latents can be cached only for masks as they are or mirrored; set --data.augment.vflip, "
                            "rot90, affine and elastic to 0, or --data.cache-latents False")  # fmt: skip
        return 2 if self.cfg.augment.hflip else 1

    def variant_batches(self, batch_size: int) -> Iterator[tuple[int, slice, Tensor]]:
        """(variant, slice of indices, images float32 [b,C,H,W] in [0, 1]) of all training masks, in index order."""
        for variant in range(self.variants):
            for start in range(0, len(self.train_set), batch_size):
                rows = slice(start, min(start + batch_size, len(self.train_set)))
                images = self.train_set.images[rows]
                yield variant, rows, to_tensor(mirrored(images) if variant else images)

    def use_latents(self, moments: Tensor, with_images: bool = False) -> None:
        """From now on ``train_dataloader`` yields rows of ``moments`` [V,N,2C,h,w] instead of images, or beside them.

        Call it before the trainer asks for the loader. ``moments`` holds the encoded ``variant_batches``.

        Raises:
            DataError: not one latent per variant and training mask.
        """
        if moments.ndim != 5 or tuple(moments.shape[:2]) != (self.variants, len(self.train_set)):
            raise DataError(f"cached latents have shape {tuple(moments.shape)}, but {self.variants} variants of "
                            f"{len(self.train_set)} masks are needed; encode the training set again")  # fmt: skip
        self._moments, self._with_images = moments, with_images

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of ``ImageDataset`` or ``LatentDataset``; never an empty loader."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if self.streams:
            return self._stream_loader(rank, world)
        batch_size = self._batch_size(len(self.train_set) // world)
        done = partial(_batches_done, trainer) if trainer else None
        group = trainer.accumulate_grad_batches if trainer else 1
        sampler = EpochSampler(len(self.train_set), batch_size, self.seed, rank, world, done, group)
        if self._moments is None:
            images = ImageDataset(self.train_set, self.cfg.augment, self.seed)
            return self._loader(images, batch_size, self.cfg.workers, sampler=sampler, drop_last=True)
        kept = self.train_set.images if self._with_images else None
        latents = LatentDataset(self._moments, self.train_set.prompts, self.cfg.augment.hflip, self.seed, kept)
        return self._loader(latents, batch_size, 0, sampler=sampler, drop_last=True)

    def _stream_loader(self, rank: int, world: int) -> DataLoader[Batch]:
        make = stream_of(self.cfg)
        assert make is not None
        share = Lanes(rank, world, max(1, self.cfg.workers))
        self._stream = stream = make(self.cfg, self.val_set, self.seed, share)
        if self._saved:
            told = stream.take_up(self._saved)
            if told and rank == 0:
                print(f"goes on with a new pass over the shards, not bit by bit: {told}", flush=True)
        return DataLoader(
            stream, None, num_workers=self.cfg.workers, collate_fn=identity, pin_memory=torch.cuda.is_available()
        )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note the place in the stream. Raises DataError for one that cannot be read on."""
        if "error" in batch:
            raise DataError(batch["error"])
        if self._stream is not None and "place" in batch:
            self._stream.done(*batch["place"].tolist())
            return {name: value for name, value in batch.items() if name != "place"}
        return batch

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Tensors alone move: Lightning's own way looks at each prompt."""
        moves = partial(torch.Tensor.to, device=device, non_blocking=device.type == "cuda")
        return {name: moves(value) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}

    def state_dict(self) -> dict[str, Any]:
        """Where a stream goes on, of all processes."""
        if self._stream is None or self.trainer is None:
            return {}
        places = torch.tensor(self._stream.places, device=self.trainer.strategy.root_device)  # [lanes,4]
        everywhere = self.trainer.strategy.all_gather(places).reshape(-1, *places.shape).tolist()
        return self._stream.state() | {"places": everywhere}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict

    def val_dataloader(self) -> DataLoader[Batch]:
        """The whole held-out set in its order, never augmented, images also when training runs on latents."""
        images = ImageDataset(self.val_set, AugmentCfg(), self.seed)
        return self._loader(images, self.cfg.batch_size, self.cfg.workers)

    def _loader(self, dataset: Any, batch_size: int, workers: int, **order: Any) -> DataLoader[Batch]:
        in_memory_of_gpu = isinstance(dataset, LatentDataset) and dataset.moments.is_cuda
        return DataLoader(
            dataset, batch_size, num_workers=workers, persistent_workers=workers > 0, collate_fn=identity,
            pin_memory=torch.cuda.is_available() and not in_memory_of_gpu, **order,
        )  # fmt: skip

    def _batch_size(self, share: int) -> int:
        if share >= self.cfg.batch_size or share == 0:
            return self.cfg.batch_size
        warnings.warn(f"data.batch_size is {self.cfg.batch_size}, but each process has only {share} training masks: "
                      f"batches of {share} are used", stacklevel=2)  # fmt: skip
        return share
