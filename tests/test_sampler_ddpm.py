"""DDPM and DDIM against Bayes' rule on a Gaussian, and against diffusers."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from configs.checks import ConfigError
from configs.sampler_cfg import DDIMCfg, DDPMCfg
from samplers.ddim import DDIM
from samplers.ddpm import DDPM
from tests.gaussian import Denoiser, Prompt, column, prompts, toy_net

S, MEAN = 0.6, 0.7
CHAINS: list[dict[str, Any]] = [
    {"schedule": "cosine", "prediction": "v"},
    {"schedule": "cosine", "prediction": "eps"},
    {"schedule": "linear", "prediction": "v"},
    {"schedule": "linear", "prediction": "eps"},
    {"schedule": "cosine", "prediction": "v", "zero_terminal_snr": True},
    {"schedule": "linear", "prediction": "v", "zero_terminal_snr": True},
]
every_chain = pytest.mark.parametrize("chain", CHAINS, ids=lambda c: "-".join(map(str, c.values())))


def seeded(seed: int = 0) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def noise() -> Tensor:
    return seeded(7)(torch.empty(3, 1, 4, 4, dtype=torch.float64))


def affine(sampler: DDPM, t: float, s: float) -> tuple[float, float, float]:
    """(a, b, c) of the step x_s = a x_t + b + c z, which is affine for a Gaussian."""

    def at(x: float, z: float) -> float:
        point = torch.full((1, 1, 1, 1), x, dtype=torch.float64)
        net = Denoiser(sampler, S)
        return sampler.step(net, point, t, s, prompts(MEAN), lambda like: torch.full_like(like, z)).item()

    b = at(0, 0)
    return at(1, 0) - b, b, at(0, 1) - b


def moments(sampler: DDPM, steps: int) -> tuple[float, float]:
    """Mean and variance of the samples, carried through the affine steps."""
    mean, variance = 0.0, 1.0
    for t, s in pairwise(sampler.times(steps).tolist()):
        a, b, c = affine(sampler, t, s)
        mean, variance = a * mean + b, a**2 * variance + c**2
    return mean, variance


# The chain


@every_chain
def test_schedule_falls_from_all_signal_and_matches_diffusers(chain: dict[str, Any]) -> None:
    sampler = DDPM(DDPMCfg(**chain))
    assert sampler.alpha[0] == 1
    assert sampler.sigma[0] == 0
    assert (sampler.alpha.diff() < 0).all()
    torch.testing.assert_close(sampler.alpha**2 + sampler.sigma**2, torch.ones(1001, dtype=torch.float64))
    theirs = reference(DDPMScheduler, chain).alphas_cumprod.double()
    torch.testing.assert_close(sampler.alpha[1:] ** 2, theirs, rtol=2e-4, atol=1e-7)  # theirs are float32 products
    if chain.get("zero_terminal_snr"):
        assert sampler.alpha[-1] == 0
        assert sampler.alpha[1] == DDPM(DDPMCfg(**{**chain, "zero_terminal_snr": False})).alpha[1]


@every_chain
def test_targets_hold_signal_and_noise_in_the_proportion_of_their_time(chain: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x1 = torch.randn(256, 1, 2, 2, dtype=torch.float64)
    sampler = DDPM(DDPMCfg(**chain))
    goal = sampler.targets(x1, Prompt(torch.zeros(256)), toy_net)
    n = ((1 - goal.t) * 1000).round().long()
    assert n.min() >= 1
    assert n.max() <= 1000
    assert not goal.dt.any()
    alpha, sigma = column(sampler.alpha[n]), column(sampler.sigma[n])
    eps = (goal.x - alpha * x1) / sigma
    torch.testing.assert_close(goal.y, eps if chain["prediction"] == "eps" else alpha * eps - sigma * x1)
    assert abs(eps.mean().item()) < 5 / math.sqrt(eps.numel())
    assert (goal.weight == 1).all()


def test_training_visits_every_noisy_point_of_the_chain_and_no_other() -> None:
    torch.manual_seed(0)
    goal = DDPM(DDPMCfg(timesteps=10, steps=10)).targets(torch.zeros(512, 1, 1, 1), Prompt(torch.zeros(512)), toy_net)
    assert ((1 - goal.t) * 10).round().unique().tolist() == list(range(1, 11))


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_min_snr_bounds_the_weight_of_the_data_error(prediction: str) -> None:
    sampler = DDPM(DDPMCfg(prediction=prediction, min_snr=5.0))  # type: ignore[arg-type]  # one of its literals
    alpha, sigma = sampler.alpha[1:], sampler.sigma[1:]
    snr = (alpha / sigma) ** 2
    # x1 = (x - sigma eps) / alpha = alpha x - sigma v: |x1 error|^2 is |eps error|^2 / SNR, and sigma^2 |v error|^2
    per_data_error = snr if prediction == "eps" else 1 / sigma**2
    torch.testing.assert_close(sampler.weight(alpha, sigma) * per_data_error, snr.clamp(max=5.0))


def test_eps_at_pure_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero_terminal_snr"):
        DDPMCfg(prediction="eps", zero_terminal_snr=True)


# Steps


@every_chain
@pytest.mark.parametrize(("t", "s"), [(0.0, 0.4), (0.1, 0.5), (0.5, 0.501), (0.9, 0.999)])
def test_ancestral_step_is_the_posterior_given_the_expected_data(chain: dict[str, Any], t: float, s: float) -> None:
    sampler = DDPM(DDPMCfg(**chain))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = sampler.path.amplitudes(t), sampler.path.amplitudes(s)
    # x_s | x1 ~ N(alpha_s x1, sigma_s^2) and x_t | x_s ~ N(ratio x_s, extra)
    ratio = alpha_t / alpha_s
    extra = sigma_t**2 - ratio**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + ratio**2 / extra)
    gain = alpha_t * S**2 / (alpha_t**2 * S**2 + sigma_t**2)  # E[x1 | x_t] = MEAN + gain (x_t - alpha_t MEAN)
    on_data, on_x = variance * alpha_s / sigma_s**2, variance * ratio / extra
    expected = (on_x + on_data * gain, on_data * (1 - gain * alpha_t) * MEAN, math.sqrt(variance))
    assert affine(sampler, t, s) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(DDPMCfg(zero_terminal_snr=True)),
        DDIM(DDIMCfg(zero_terminal_snr=True)),
        DDIM(DDIMCfg(zero_terminal_snr=True, eta=0.5)),
    ],
    ids=["ddpm", "ddim", "eta0.5"],
)
def test_moments_of_the_samples_approach_those_of_the_data(sampler: DDPM) -> None:
    coarse, fine = moments(sampler, 250), moments(sampler, 500)
    assert fine == pytest.approx((MEAN, S**2), abs=0.01)
    assert (S**2 - fine[1]) / (S**2 - coarse[1]) == pytest.approx(0.5, abs=0.1)  # a first-order method


@every_chain
def test_ddim_with_all_of_the_noise_is_ddpm(chain: dict[str, Any]) -> None:
    ddim, ddpm = DDIM(DDIMCfg(eta=1.0, **chain)), DDPM(DDPMCfg(**chain))
    one, other = (s.sample(toy_net, noise(), prompts(1, 2, 3), steps=20, randn=seeded()) for s in (ddim, ddpm))
    assert torch.equal(one, other)


def test_deterministic_ddim_draws_nothing() -> None:
    def refuse(x: Tensor) -> Tensor:
        raise AssertionError("drew noise")

    assert DDIM(DDIMCfg()).sample(toy_net, noise(), prompts(1, 2, 3), steps=5, randn=refuse).isfinite().all()


# diffusers


def reference(kind: type, chain: dict[str, Any]) -> Any:
    own = {"variance_type": "fixed_small"} if kind is DDPMScheduler else {"set_alpha_to_one": True}
    return kind(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule={"cosine": "squaredcos_cap_v2", "linear": "linear"}[chain["schedule"]],
        prediction_type={"v": "v_prediction", "eps": "epsilon"}[chain["prediction"]],
        rescale_betas_zero_snr=chain.get("zero_terminal_snr", False),
        timestep_spacing="trailing",
        clip_sample=False,
        **own,
    )


def scheduler_like(kind: type, chain: dict[str, Any], sampler: DDPM) -> Any:
    scheduler = reference(kind, chain)
    if chain["schedule"] == "cosine":
        # Their tables are float32. At the noisy end of this chain eps is divided by alpha = 5e-5, and eta = 1 leaves
        # 1 - alpha^2 - noise^2 of 1e-9: both need float64 to be right to 1e-5.
        scheduler.alphas_cumprod = sampler.alpha[1:] ** 2
    return scheduler


def their_trajectory(scheduler: Any, steps: int, seed: int, **step_args: Any) -> list[Tensor]:
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    x, found = noise(), []
    for index in scheduler.timesteps:
        t = torch.full((3,), 1 - (index.item() + 1) / 1000, dtype=torch.float64)
        answer = toy_net(x, t, torch.zeros(3), prompts(1, 2, 3))
        x = scheduler.step(answer, index, x, generator=generator, **step_args).prev_sample
        found.append(x)
    return found


def our_trajectory(sampler: DDPM, steps: int, seed: int) -> list[Tensor]:
    x, randn, found = noise(), seeded(seed), []
    for t, s in pairwise(sampler.times(steps).tolist()):
        x = sampler.step(toy_net, x, t, s, prompts(1, 2, 3), randn)
        found.append(x)
    return found


def same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


@every_chain
@pytest.mark.parametrize("steps", [10, 40])
def test_ddpm_trajectory_is_that_of_diffusers(chain: dict[str, Any], steps: int) -> None:
    sampler = DDPM(DDPMCfg(**chain))
    scheduler = scheduler_like(DDPMScheduler, chain, sampler)
    same(our_trajectory(sampler, steps, 3), their_trajectory(scheduler, steps, 3))


@every_chain
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_trajectory_is_that_of_diffusers(chain: dict[str, Any], eta: float) -> None:
    sampler = DDIM(DDIMCfg(eta=eta, **chain))
    scheduler = scheduler_like(DDIMScheduler, chain, sampler)
    same(our_trajectory(sampler, 20, 3), their_trajectory(scheduler, 20, 3, eta=eta))


# Times


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 128, 999, 1000])
def test_regular_times_are_distinct_points_of_the_chain_in_trailing_spacing(steps: int) -> None:
    times = DDPM(DDPMCfg()).times(steps)
    n = (1 - times) * 1000
    torch.testing.assert_close(n, n.round(), rtol=0, atol=1e-9)
    assert (times.diff() > 0).all()
    assert times[0] == 0
    assert times[-1] == 1
    scheduler = reference(DDPMScheduler, CHAINS[0])
    scheduler.set_timesteps(steps)
    assert (n.round().long() - 1)[:-1].tolist() == scheduler.timesteps.tolist()


def test_more_steps_than_the_chain_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps is 11, but it must be at most 10"):
        DDPM(DDPMCfg(timesteps=10, steps=10)).times(11)


def test_times_that_fall_on_one_point_of_the_chain_are_refused() -> None:
    with pytest.raises(ValueError, match=r"times has 0\.52 and 0\.54, but both fall on step 5 of the training chain"):
        DDPM(DDPMCfg(timesteps=10, steps=10)).irregular([0, 0.52, 0.54, 1])


def test_irregular_times_snap_to_the_chain() -> None:
    torch.testing.assert_close(
        DDPM(DDPMCfg(timesteps=10, steps=10)).irregular([0, 0.22, 0.58, 1]),
        torch.tensor([0, 0.2, 0.6, 1], dtype=torch.float64),
    )
