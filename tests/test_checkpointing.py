"""Activation checkpointing: the same gradients from less memory."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from configs.backbone_cfg import DiTCfg, UNetCfg
from models import build_backbone
from models.text import Condition
from scripts import scaling

SMALL = [UNetCfg(width=32, multipliers=(1, 2), blocks=1, attention_sizes=(4,)), DiTCfg(width=32, depth=2)]
networks = pytest.mark.parametrize("cfg", SMALL, ids=["unet", "dit"])


def gradients(cfg: UNetCfg | DiTCfg) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = build_backbone(cfg, (4, 8, 8), 24, 16)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    cond = Condition(torch.randn(3, 5, 24), torch.ones(3, 5, dtype=torch.bool))
    x = torch.randn(3, 4, 8, 8, requires_grad=True)
    net(x, torch.rand(3), torch.rand(3), cond).square().mean().backward()
    named = [("x", x), *net.named_parameters()]
    return {name: value.grad for name, value in named if value.grad is not None}


@networks
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_the_network_that_keeps_everything(cfg: UNetCfg | DiTCfg, dropout: float) -> None:
    cfg = replace(cfg, dropout=dropout)
    kept, again = gradients(cfg), gradients(replace(cfg, checkpointing=True))
    assert kept.keys() == again.keys()
    for name, value in kept.items():
        assert value.any()
        torch.testing.assert_close(again[name], value, rtol=0, atol=0, msg=name)


@networks
def test_every_block_is_computed_twice_with_gradients_and_once_without(cfg: UNetCfg | DiTCfg) -> None:
    net = build_backbone(replace(cfg, checkpointing=True), (4, 8, 8), 24, 16)
    blocks = [block for blocks in net.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]
    blocks = [block for block in blocks if not isinstance(block, nn.ModuleList)]
    calls = dict.fromkeys(blocks, 0)

    def count(block: nn.Module, _: object) -> None:
        calls[block] += 1

    for block in blocks:
        block.register_forward_pre_hook(count)
    cond = Condition(torch.randn(3, 5, 24), torch.ones(3, 5, dtype=torch.bool))
    answer = net(torch.randn(3, 4, 8, 8), torch.rand(3), torch.rand(3), cond)
    assert set(calls.values()) == {1}
    answer.square().mean().backward()
    assert set(calls.values()) == {2}
    with torch.no_grad():
        net(torch.randn(3, 4, 8, 8), torch.rand(3), torch.rand(3), cond)
    assert set(calls.values()) == {3}


@pytest.mark.parametrize("name", ["UNet-S", "DiT-L"])
def test_big_networks_keep_a_fraction_for_at_most_a_forward_pass_more(name: str) -> None:
    size = next(size for size in scaling.SIZES if size.name == name)
    side = size.image_size // size.factor
    kept, again = (
        scaling.cost(replace(size.backbone, checkpointing=checkpointing), (4, side, side))
        for checkpointing in (False, True)
    )
    assert again.parameters == kept.parameters
    assert again.activations < 0.2 * kept.activations
    assert 0.5 * kept.forward < again.step - kept.step < 1.01 * kept.forward
