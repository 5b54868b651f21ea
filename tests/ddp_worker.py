"""Run by test_trainer.py: one step of plain SGD through Lightning, on one process or two, on the same eight rows.

Usage: python -m tests.ddp_worker DEVICES OUT
"""

import sys
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from conftest import TINY_1, TINY_2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoencoder import AutoencoderModule
from diffusion import DiffusionModule
from samplers.base import Sampler, Targets


class Fixed(Sampler):
    """Targets without chance, so that rows can be shared out differently and stay the same."""

    def draw(self, x1: Tensor, cond: Any, teacher: Any, step: int) -> Targets:
        half = torch.full((len(x1),), 0.5)
        return Targets(0.3 * x1, half, half, cond, x1, torch.ones(len(x1)), {"flow": slice(0, len(x1))})

    def step(self, *_: Any) -> Tensor:
        raise AssertionError("no sampling here")


class Rows(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        mean = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(index))
        return {"moments": torch.cat([mean, torch.full_like(mean, -60.0)]), "prompt": f"thing number {index}"}


class Plain(DiffusionModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=1.0)


def main() -> None:
    devices, out = int(sys.argv[1]), sys.argv[2]
    torch.manual_seed(0)
    cfg = replace(TINY_2, sampler=replace(TINY_2.sampler, condition_drop=0.0))
    module = Plain(cfg, AutoencoderModule(TINY_1))
    module.sampler = Fixed(cfg.sampler)
    for parameter in module.net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(Rows(), batch_size=8 // devices))
    grads = {name: p.grad for name, p in module.net.named_parameters()}
    torch.save(grads, f"{out}.rank{trainer.global_rank}")


if __name__ == "__main__":
    main()
