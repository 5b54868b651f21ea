"""The wavelet loss: when it is the mean squared error, and what it does otherwise."""

import pytest
import torch

from configs.checks import ConfigError
from models.band_loss import BandLoss, Weighting
from models.wavelet import inverse_haar

SHAPE = (4, 8, 8)
EVERY: tuple[Weighting, ...] = ("parseval", "uniform", "hf", "whiten")


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, *SHAPE, generator=generator), torch.randn(5, *SHAPE, generator=generator)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_parseval_weights_give_the_mean_squared_error(levels: int) -> None:
    answer, wanted = pair()
    expected = (answer - wanted).square().mean((1, 2, 3))
    torch.testing.assert_close(BandLoss(SHAPE, levels, "parseval")(answer, wanted), expected)


@pytest.mark.parametrize("weighting", EVERY)
def test_white_errors_cost_their_variance_under_all_weights(weighting: Weighting) -> None:
    error = 2 * torch.randn(20_000, *SHAPE, generator=torch.Generator().manual_seed(0))
    loss = BandLoss(SHAPE, 2, weighting).eval()(error, torch.zeros_like(error))
    # a band of the coarsest level has 16 coefficients, so one row's loss varies by at most sqrt(2/16) of 4
    assert loss.mean().item() == pytest.approx(4, abs=5 * 4 * (2 / 16) ** 0.5 / 20_000**0.5)


def test_all_processes_whiten_by_what_all_of_them_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, wanted = pair()
    other = 3 * wanted.flip(2)  # the batch of a second process
    joint, own = BandLoss(SHAPE, 2, "whiten"), BandLoss(SHAPE, 2, "whiten")
    joint(torch.cat([answer, answer]), torch.cat([wanted, other]))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda value: value.add_(own.powers(other).mean(0)))
    own(answer, wanted)
    torch.testing.assert_close(own.variance, joint.variance)


@pytest.mark.parametrize(("band", "level"), [(0, 2), (1, 2), (3, 2), (2, 1)])
def test_an_error_in_one_band_costs_that_bands_weight(band: int, level: int) -> None:
    loss = BandLoss(SHAPE, 2, "uniform")
    bands = torch.zeros(1, 16, 8 // 2**level, 8 // 2**level)
    bands[:, 4 * band : 4 * band + 4] = 3.0
    error = inverse_haar(bands)
    if level == 2:
        error = inverse_haar(torch.cat([error, torch.zeros(1, 12, 4, 4)], dim=1))
    torch.testing.assert_close(loss(error, torch.zeros_like(error)), torch.tensor([9 / 7]))


def test_detail_counts_more_under_hf_and_less_under_uniform_than_in_the_mean() -> None:
    checkers = torch.ones(1, *SHAPE)
    checkers[..., ::2, 1::2] = checkers[..., 1::2, ::2] = -1
    flat, zero = torch.ones(1, *SHAPE), torch.zeros(1, *SHAPE)
    ratio = {w: (BandLoss(SHAPE, 2, w)(checkers, zero) / BandLoss(SHAPE, 2, w)(flat, zero)).item() for w in EVERY[:3]}
    assert ratio["parseval"] == pytest.approx(1)
    assert ratio["hf"] == pytest.approx(4)  # two levels apart
    assert ratio["uniform"] == pytest.approx(1 / 4)  # both have all their power in one band: 4 and 16 times its mean


def test_whitening_learns_the_bands_variances_in_training_only() -> None:
    loss = BandLoss(SHAPE, 1, "whiten")
    wanted = torch.cat([3 * torch.ones(64, 4, 4, 4), 0.5 * torch.ones(64, 12, 4, 4)], dim=1)  # LL, then details
    wanted = inverse_haar(wanted)
    loss.eval()(wanted, wanted)
    assert torch.equal(loss.variance, torch.ones(4))
    loss.train()
    for _ in range(2000):
        loss(wanted, wanted)
    torch.testing.assert_close(loss.variance, torch.tensor([0.25, 0.25, 0.25, 9.0]), rtol=1e-3, atol=0)


def test_a_pyramid_deeper_than_the_latent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sampler\.band_levels is 3, but the latent is 12x8"):
        BandLoss((4, 12, 8), 3, "uniform")
