"""Wavelet and convolution networks are compared at equal size or at equal work."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.backbone_cfg import UNetCfg
from configs.presets import SMALL_UNET
from models import build_backbone
from models.text import Condition


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
def test_convolutions_match_the_wavelet_network_in_size_with_kernel_3_and_in_work_with_kernel_2(
    cfg: UNetCfg, latent_shape: tuple[int, int, int]
) -> None:
    size, work = cost(cfg, latent_shape)
    by_size = cost(replace(cfg, resample="conv", conv_kernel=3), latent_shape)
    by_work = cost(replace(cfg, resample="conv", conv_kernel=2), latent_shape)
    assert abs(by_size[0] / size - 1) < 0.01
    assert abs(by_work[1] / work - 1) < 0.01
    assert by_size[1] > 1.04 * work  # why one comparison is not enough: equal size costs more work
    assert abs(by_work[0] / size - 1) < 0.025  # while equal work misses the size by little


def test_each_switch_takes_its_own_weights_away() -> None:
    full, ungated, unskipped, neither = (
        cost(replace(SMALL_UNET, **switches), (4, 8, 8))[0]
        for switches in ({}, {"gates": False}, {"band_skips": False}, {"gates": False, "band_skips": False})
    )
    assert full > unskipped > neither
    assert full - ungated == unskipped - neither
