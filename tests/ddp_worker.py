"""Run by test_distributed.py: short trainings under several strategies, by processes as torchrun would start them.

Usage: python -m tests.ddp_worker OUT MACHINES PROCESSES_OF_EACH STRATEGY...
"""

import os
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from conftest import TINY_1, TINY_2
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from autoencoder import AutoencoderModule
from configs.data_cfg import ShardSource
from data.module import MaskDataModule
from data.sources import load_splits
from diffusion import DiffusionModule
from models.hardware import processes
from samplers.base import Sampler, Targets
from scripts.make_shards import write_part
from trainer import build_trainer, quiet

ROWS = 8


class Fixed(Sampler):
    """Targets without chance, so that rows can be shared out differently and stay the same."""

    def draw(self, x1: Tensor, cond: Any, teacher: Any, step: Any) -> Targets:
        half = torch.full((len(x1),), 0.5)
        return Targets(0.3 * x1, half, half, cond, x1, torch.ones(len(x1)), {"flow": slice(0, len(x1))})

    def step(self, *_: Any) -> Tensor:
        raise AssertionError("no sampling here")


class Rows(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Any]:
        mean = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(index))
        return {"moments": torch.cat([mean, torch.full_like(mean, -60.0)]), "prompt": f"thing number {index}"}


class Plain(DiffusionModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=1.0)


def plain_module() -> Plain:
    torch.manual_seed(0)
    cfg = replace(TINY_2, sampler=replace(TINY_2.sampler, condition_drop=0.0))
    module = Plain(cfg, AutoencoderModule(TINY_1))
    module.sampler = Fixed(cfg.sampler)
    for parameter in module.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


def gradients(world: int) -> dict[str, Any]:
    """Of one step of plain SGD, each process with its share of the rows."""
    module = plain_module()
    devices, nodes = processes(TINY_2.train)
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, num_nodes=nodes, strategy="ddp", max_steps=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(Rows(), batch_size=ROWS // world))
    return {name: p.grad for name, p in module.net.named_parameters()}


def trained(
    strategy: Any, out: Path, shards: Path, steps: int, resume: Path | None = None, parts: bool = False
) -> dict[str, Any]:
    """State of the model after some steps on a stream of real masks, put together; it is saved in ``out`` too.

    A resumed training computes what is inside the blocks again in its backward pass, which must change nothing.
    """
    torch.manual_seed(0)
    train = replace(TINY_2.train, strategy=strategy, max_steps=steps, val_every=100, checkpoint_parts=parts)
    optim = replace(TINY_2.optim, final_lr=1.0, muon_lr=1e-3)  # a schedule that does not depend on the number of steps
    of_two = {"sketch": 32}
    of_four = {"multipliers": (1,), "attention_sizes": ()}  # sharing out takes time for each parameter and process
    parts_of_net: dict[str, Any] = of_four if os.environ.get("WORLD_SIZE") == "4" else of_two
    backbone = replace(TINY_2.backbone, **parts_of_net, checkpointing=resume is not None)
    data = replace(TINY_2.data, source=ShardSource(str(shards), shuffle=4), limit=0)
    cfg = replace(TINY_2, train=train, data=replace(data, batch_size=4), optim=optim, backbone=backbone)
    module = DiffusionModule(cfg, AutoencoderModule(TINY_1))
    trainer = build_trainer(train, out, "loss", "min", 1.0, [])
    trainer.limit_val_batches = 0
    trainer.fit(module, datamodule=MaskDataModule(cfg.data, 0), ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(out / f"{steps}.ckpt")
    whole = {name: value.full_tensor() if isinstance(value, DTensor) else value.clone()
             for name, value in module.state_dict().items()}  # fmt: skip
    return whole | {"shared": any(isinstance(value, DTensor) for value in module.state_dict().values())}


def run(out: Path, strategies: list[str]) -> None:
    """What each process does; ``out`` then holds what it has found."""
    quiet()
    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=4))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found: dict[str, Any] = {"gradients": gradients(world)} if world == 2 else {}
    for strategy in strategies:
        folder = out / strategy
        if strategy != "hybrid":  # whose processes are many: stopped and resumed is enough
            found[strategy] = trained(strategy, folder, out / "shards", 2)
        if strategy != "ddp":
            half = folder / "half"
            trained(strategy, half, out / "shards", 1, parts=True)
            found[f"{strategy} resumed"] = trained(strategy, half, out / "shards", 2, half / "1.ckpt", parts=True)
    torch.save(found, out / f"rank{rank}.pt")


def environments(nodes: int, processes: int) -> Iterator[dict[str, str]]:
    """What torchrun would say to each process of this many machines."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for rank in range(nodes * processes):
        yield {
            "RANK": str(rank), "LOCAL_RANK": str(rank % processes), "GROUP_RANK": str(rank // processes),
            "WORLD_SIZE": str(nodes * processes), "LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": "test",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip


def main() -> None:
    """Fork the processes, so that seconds of imports are spent once."""
    out, nodes, processes, strategies = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    (out / "shards").mkdir()
    masks, held_out = load_splits(replace(TINY_2.data, limit=64))
    write_part(out / "shards", "train", iter([masks]), samples=8)
    write_part(out / "shards", "test", iter([held_out.select(range(8))]), samples=8)
    children = []
    for environment in environments(nodes, processes):
        child = os.fork()
        if not child:
            try:
                os.environ |= environment
                run(out, strategies)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
