"""Muon: what it makes of a gradient, which weights it moves, and that it learns, resumes and leaves out updates."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_1, TINY_2
from torch import Tensor, nn

from autoencoder import AutoencoderModule
from configs.backbone_cfg import DiTCfg
from configs.checks import ConfigError
from configs.trainer_cfg import OptimCfg
from diffusion import DiffusionModule
from models.checkpoint import CheckpointError
from models.muon import MOMENTUM, SHARE, orthogonal
from models.optim import build_optimizer
from trainer import train_stage_1, train_stage_2

CFG = OptimCfg(lr=1e-3, muon_lr=3e-3, warmup_steps=0, weight_decay=0.1)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 24), (2, 24, 16), (3, 16, 144), (2, 144, 16)])
def test_a_matrix_becomes_the_nearest_orthogonal_one(shape: tuple[int, int, int]) -> None:
    """Wide, tall and nearly square ones, of any size; the singular vectors stay."""
    torch.manual_seed(0)
    x = torch.randn(shape) * 10.0 ** torch.tensor([-6.0, 0.0, 6.0])[: shape[0], None, None]
    made = orthogonal(x)
    left, values, right = torch.linalg.svd(x.double(), full_matrices=False)
    kept = left.mT @ made.double() @ right.mT
    there = values > 0.01 * values.amax(1, keepdim=True)  # those near none become larger, but not yet near 1
    diagonal = kept.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.25))[there].all()
    assert (kept - torch.diag_embed(diagonal)).abs().max() < 1e-3


def test_wide_matrices_are_iterated_by_their_square_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 32, 288)
    by_square = orthogonal(x)
    monkeypatch.setattr("models.muon.WIDE", math.inf)
    plain = orthogonal(x)
    torch.testing.assert_close(by_square, plain, rtol=1e-3, atol=1e-4)
    assert not torch.equal(by_square, plain)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert torch.equal(orthogonal(x), plain)  # rounded products would not do for the square


def test_no_gradient_at_all_moves_nothing() -> None:
    assert not orthogonal(torch.zeros(1, 16, 32)).any()


class Net(nn.Module):
    """A first and a last layer, and between them a filter, a small one, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(2, 16, 3, padding=1)
        self.inside = nn.Conv2d(16, 16, 3, padding=1)
        self.small = nn.Conv2d(16, 4, 1)
        self.conv_out = nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_out(self.small(self.inside(self.conv_in(x)).relu()))
        return out


def built(net: nn.Module, cfg: OptimCfg = CFG) -> Any:
    return build_optimizer(net, cfg, 100)["optimizer"]


def step(net: Net, optimizer: Any, seed: int = 0) -> None:
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


def test_only_filters_inside_are_moved_by_it() -> None:
    net, other = Net(), Net()
    optimizer, plain = built(net), built(other, replace(CFG, muon_lr=0.0))
    (inside,) = next(group["params"] for group in optimizer.param_groups if group["muon"])
    assert inside is net.inside.weight
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
    for seed in range(2):
        step(net, optimizer, seed)
        if seed == 0:  # the second begins at other weights
            step(other, plain, seed)
            for (name, mine), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
                assert torch.equal(mine, theirs) == (name != "inside.weight"), name


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_its_step_is_momentum_made_orthogonal_in_either_memory_format(layout: torch.memory_format) -> None:
    net = Net().to(memory_format=layout)
    optimizer, mean, expected = built(net), torch.zeros(16, 144), net.inside.weight.detach().clone().flatten(1)
    for seed in range(3):
        step(net, optimizer, seed)
        gradient = net.inside.weight.grad
        assert gradient is not None
        mean = mean.lerp(gradient.flatten(1), 1 - MOMENTUM)
        moved = orthogonal(gradient.flatten(1).lerp(mean, MOMENTUM)[None])[0]
        expected = expected * (1 - 3e-3 * 0.1) - 3e-3 * SHARE * 12 * moved
        torch.testing.assert_close(net.inside.weight.detach().flatten(1), expected, rtol=0, atol=1e-5)


def test_it_goes_on_from_its_state_and_leaves_out_what_is_no_number() -> None:
    net = Net()
    optimizer = built(net)
    step(net, optimizer)
    twin = copy.deepcopy(net)
    resumed = built(twin)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer.found_inf = torch.tensor(1.0)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    optimizer.found_inf = None
    for one, other in ((net, optimizer), (twin, resumed)):
        step(one, other, seed=1)
    for name, value in net.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


@pytest.mark.parametrize("sketch", [0, 32])
def test_of_the_network_it_moves_most_weights_but_no_outer_ones(
    sketch: int, tiny_autoencoder: AutoencoderModule
) -> None:
    backbone = replace(TINY_2.backbone, width=64, sketch=sketch)
    net = DiffusionModule(replace(TINY_2, backbone=backbone), tiny_autoencoder).net
    moved = {id(p) for group in built(net).param_groups if group["muon"] for p in group["params"]}
    left = {name for name, p in net.named_parameters() if p.ndim >= 2 and id(p) not in moved}
    of_sketch = {"sketch.first.weight", "sketch.last.0.weight", "sketch.last.1.weight"} if sketch else set()
    assert {name for name in left if "modulation" not in name} == of_sketch | {
        "conv_in.weight", "conv_out.weight", "pooled.weight", "prompt.null", "prompt.project.1.weight",
        "time.mlp.0.weight", "time.mlp.2.weight", "step.mlp.0.weight", "step.mlp.2.weight",
    }  # fmt: skip
    assert sum(p.numel() for p in net.parameters() if id(p) in moved) > 0.7 * sum(p.numel() for p in net.parameters())


def test_of_a_dit_it_moves_what_is_inside_the_blocks(tiny_autoencoder: AutoencoderModule) -> None:
    net = DiffusionModule(replace(TINY_2, backbone=DiTCfg(width=64, depth=1)), tiny_autoencoder).net
    moved = {id(p) for group in built(net).param_groups if group["muon"] for p in group["params"]}
    names = {name for name, p in net.named_parameters() if id(p) in moved}
    assert names
    assert all(name.startswith("blocks.0.") and "modulation" not in name for name in names), names


def test_the_scaler_of_fp16_unscales_for_it_and_leaves_updates_out() -> None:
    net, twin = Net(), Net()
    optimizer, plain, scaler = built(net), built(twin), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed, factor in ((0, 1.0), (1, math.inf), (2, 1.0)):
        x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        scaler.scale(net(x).square().mean() * factor).backward()
        scaler.unscale_(optimizer)  # as StepRoutine does
        scaler.step(optimizer)
        scaler.update()
        if factor == 1.0:
            step(twin, plain, seed)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.slow
def test_a_training_goes_on_with_the_optimiser_that_it_began_with(tmp_path: Path) -> None:
    stage_1 = replace(TINY_1.train, run_dir=str(tmp_path / "1"), runs=str(tmp_path), max_steps=1)
    train_stage_1(replace(TINY_1, train=stage_1), "x")
    train = replace(stage_1, run_dir=str(tmp_path / "2"), max_steps=2, val_every=1)  # best.ckpt and last.ckpt
    plain = replace(TINY_2, train=train, autoencoder=str(tmp_path / "1" / "last.ckpt"))
    cfg = replace(plain, optim=replace(TINY_2.optim, muon_lr=1e-3))
    train_stage_2(cfg, "x")
    train_stage_2(replace(plain, train=replace(train, resume="auto")), "x")  # it is over, whatever the optimiser
    further = replace(train, max_steps=3, resume="auto")
    words = r"2/\w+\.ckpt.* was trained with optim\.muon_lr 0\.001.*go on with --optim\.muon-lr 0\.001"
    with pytest.raises(CheckpointError, match=words):
        train_stage_2(replace(plain, train=further), "x")
    train_stage_2(replace(cfg, train=further), "x")
    about = json.loads((tmp_path / "2" / "run.json").read_text())
    assert about["status"] == "complete"
    assert torch.load(tmp_path / "2" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_it_is_refused_where_it_is_not_for() -> None:
    with pytest.raises(ConfigError, match=r"optim\.muon_lr is 0\.001, but it must be 0 in stage 1"):
        replace(TINY_1, optim=replace(TINY_1.optim, muon_lr=1e-3))


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.muon_lr is -1"):
        OptimCfg(muon_lr=-1.0)
