"""Wavelet and convolution networks are compared at equal size or at equal work."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.backbone_cfg import DiTCfg, UNetCfg
from configs.presets import SMALL_UNET
from configs.trainer_cfg import OptimCfg
from models import build_backbone, winograd
from models.ema import frozen_twin
from models.optim import build_optimizer
from models.text import Condition
from scripts import scaling


def cost(cfg: UNetCfg, latent_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Parameters, and floating-point operations of one answer; nothing is computed (meta tensors)."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = build_backbone(cfg, latent_shape, 384, 128)
        cond = Condition(torch.zeros(1, 15, 384), torch.ones(1, 15, dtype=torch.bool))
        net(torch.zeros(1, *latent_shape), torch.zeros(1), torch.zeros(1), cond)
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops()


@pytest.mark.parametrize(
    ("cfg", "latent_shape"),
    [(SMALL_UNET, (4, 8, 8)), (UNetCfg(width=128, multipliers=(1, 2, 3), blocks=2), (4, 16, 16))],
)
def test_convolutions_match_the_wavelet_network_plain_with_kernel_2_and_with_gates_and_skips_with_kernel_3(
    cfg: UNetCfg, latent_shape: tuple[int, int, int]
) -> None:
    plain, plain_work = cost(cfg, latent_shape)
    full, full_work = cost(replace(cfg, gates=True, band_skips=True), latent_shape)
    by_2, work_2 = cost(replace(cfg, resample="conv", conv_kernel=2), latent_shape)
    by_3, work_3 = cost(replace(cfg, resample="conv", conv_kernel=3), latent_shape)
    assert abs(by_2 / plain - 1) < 0.001
    once_a_call = sum(2 * 4 * 4 * (cfg.width * wide) ** 2 for wide in cfg.multipliers[:-1])  # bands' filters to pixels'
    assert work_2 == plain_work - once_a_call
    assert abs(by_3 / full - 1) < 0.01
    assert work_3 > 1.01 * full_work  # equal size costs more work
    assert full_work > plain_work


def test_each_switch_takes_its_own_weights_away() -> None:
    full, ungated, unskipped, neither = (
        cost(replace(SMALL_UNET, **({"gates": True, "band_skips": True} | switches)), (4, 8, 8))[0]
        for switches in ({}, {"gates": False}, {"band_skips": False}, {"gates": False, "band_skips": False})
    )
    assert full > unskipped > neither
    assert full - ungated == unskipped - neither


@pytest.mark.parametrize(
    "cfg",
    [UNetCfg(width=32, multipliers=(1, 2), blocks=1, attention_sizes=(4,)), DiTCfg(width=64, depth=2)],
    ids=["unet", "dit"],
)
def test_what_is_counted_on_paper_is_what_a_real_step_needs(
    cfg: UNetCfg | DiTCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "pays", lambda *_: False)  # it needs fewer on a CPU in fp32
    paper, real = (scaling.cost(cfg, (4, 8, 8), device, rows=3) for device in ("meta", "cpu"))
    assert paper.parameters == real.parameters
    assert paper.forward == pytest.approx(real.forward, rel=0.01)
    assert paper.step == pytest.approx(real.step, rel=0.01)
    assert paper.activations == pytest.approx(real.activations, rel=0.1)

    net = build_backbone(cfg, (4, 8, 8), scaling.FEATURES, scaling.TEXT_WIDTH)
    twins = frozen_twin(net), frozen_twin(net)
    optimizer = build_optimizer(net, OptimCfg(), 10)["optimizer"]
    cond = Condition(torch.zeros(1, 4, scaling.FEATURES), torch.ones(1, 4, dtype=torch.bool))
    net(torch.randn(1, 4, 8, 8), torch.rand(1), torch.rand(1), cond).square().mean().backward()
    optimizer.step()
    held = [p for module in (net, *twins) for p in module.parameters()] + [p.grad for p in net.parameters()]
    held += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert sum(tensor.nbytes for tensor in held if tensor is not None) == paper.state


def test_the_strategy_follows_from_what_a_gpu_holds() -> None:
    gpu = scaling.GPU_BYTES
    assert scaling.strategy(0.9 * gpu, round(0.5 * gpu)) == "ddp"
    assert scaling.strategy(1.2 * gpu, round(0.5 * gpu)).startswith("fsdp from 2 GPUs")
    assert scaling.strategy(1.2 * gpu, round(0.25 * gpu)).startswith("fsdp from 8 GPUs")
    assert "accumulate" in scaling.strategy(1.2 * gpu, round(0.1 * gpu))


def test_sizes_span_what_is_promised_and_grow() -> None:
    found = [scaling.cost(size.backbone, (4, *2 * (size.image_size // size.factor,))) for size in scaling.SIZES]
    assert found[0].parameters < 6e6
    assert 0.9e9 < found[-1].parameters < 1.2e9
    assert (scaling.SIZES[0].image_size, scaling.SIZES[-1].image_size) == (32, 1024)
    assert [cost.parameters for cost in found] == sorted(cost.parameters for cost in found)


def test_the_table_goes_into_a_new_file_or_in_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "table", lambda: "| a |")
    page = tmp_path / "new.md"
    for before in ("", "# Scaling\n\n"):
        page.unlink(missing_ok=True)
        if before:
            page.write_text(before)
        for _ in range(2):
            scaling.main(["--out", str(page)])
            assert page.read_text() == f"{before}<!-- table -->\n| a |\n"
