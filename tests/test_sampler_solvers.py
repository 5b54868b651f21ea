"""Solvers that are no training objective, against closed forms of a Gaussian and against diffusers."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from configs.sampler_cfg import DDIMCfg, DDPMCfg, FlowCfg, SamplerCfg, ShortcutCfg
from configs.solver_cfg import DPMppCfg, HeunCfg, RestartCfg
from samplers import Guidance, Solver, sampler_for, solvers_of
from samplers.dpmpp import DPMpp
from samplers.heun import Heun
from samplers.restart import Restart
from tests.gaussian import FlowMap, Prompt, column, exact_net, ladder_net, prompts, toy_net

S, MEANS = 0.6, (0.7, -1.2, 0.0)
TIMES = [0.0, 0.05, 0.3, 0.35, 0.8, 0.97, 1.0]


def noise(rows: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def refuse(x: Tensor) -> Tensor:
    raise AssertionError("drew noise")


def affine(solver: Solver, s: float, start: float, end: float) -> tuple[float, float, float]:
    """(a, b, c) of the step x_end = a x_start + b + c z around data N(MEANS[0], s^2)."""

    def at(x: float, z: float) -> float:
        point = torch.full((1, 1, 1, 1), x, dtype=torch.float64)
        cond = prompts(MEANS[0])
        return solver.step(FlowMap(s), point, start, end, cond, lambda like: torch.full_like(like, z)).item()

    b = at(0, 0)
    return at(1, 0) - b, b, at(0, 1) - b


def moments(solver: Solver, s: float, grid: list[float]) -> list[tuple[float, float]]:
    """Mean and variance at each time, carried through the affine steps."""
    found = [(0.0, 1.0)]
    for start, end in pairwise(grid):
        a, b, c = affine(solver, s, start, end)
        found.append((a * found[-1][0] + b, a**2 * found[-1][1] + c**2))
    return found


# DDIM and DDPM on velocity networks


@pytest.mark.parametrize("how", [{"steps": 1}, {"steps": 7}, {"times": TIMES}], ids=str)
def test_deterministic_ddim_on_velocities_is_euler(how: dict[str, Any]) -> None:
    ddim, flow = sampler_for(FlowCfg(), "ddim"), sampler_for(FlowCfg(), "flow")
    one, other = (s.sample(toy_net, noise(), prompts(*MEANS), randn=refuse, **how) for s in (ddim, flow))
    close(one, other)


def test_ddim_with_all_of_the_noise_is_ddpm_on_velocities_too() -> None:
    ddim, ddpm = sampler_for(ShortcutCfg(), "ddim", eta=1.0), sampler_for(ShortcutCfg(), "ddpm")
    one, other = (
        s.sample(toy_net, noise(), prompts(*MEANS), times=TIMES, randn=lambda x: noise(len(x), 5)) for s in (ddim, ddpm)
    )
    assert torch.equal(one, other)
    assert (one - sampler_for(FlowCfg()).sample(toy_net, noise(), prompts(*MEANS), times=TIMES)).abs().min() > 1e-3


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_steps_towards_a_point_have_the_exact_marginals_at_any_eta(eta: float) -> None:
    # All data at one point: the expected data are the data, and x_s ~ N(s mean, (1 - s)^2) however long the step is.
    solver = sampler_for(FlowCfg(), "ddim", eta=eta)
    for t, (mean, variance) in zip(TIMES[:-1], moments(solver, 0.0, TIMES[:-1]), strict=True):
        assert (mean, variance) == pytest.approx((t * MEANS[0], (1 - t) ** 2), abs=1e-12)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.4), (0.1, 0.5), (0.5, 0.501), (0.9, 0.999)])
def test_ancestral_step_on_velocities_is_the_posterior_given_the_expected_data(start: float, end: float) -> None:
    # x_end | x1 ~ N(end x1, (1-end)^2) and x_start | x_end ~ N(ratio x_end, extra)
    ratio = start / end
    extra = (1 - start) ** 2 - (ratio * (1 - end)) ** 2
    variance = 1 / (1 / (1 - end) ** 2 + ratio**2 / extra)
    gain = start * S**2 / (start**2 * S**2 + (1 - start) ** 2)  # E[x1 | x_start] = m + gain (x_start - start m)
    on_data, on_x = variance * end / (1 - end) ** 2, variance * ratio / extra
    expected = (on_x + on_data * gain, on_data * (1 - gain * start) * MEANS[0], math.sqrt(variance))
    assert affine(sampler_for(FlowCfg(), "ddpm"), S, start, end) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noisy_steps_on_velocities_keep_the_marginals_as_steps_get_short(eta: float) -> None:
    solver = sampler_for(FlowCfg(), "ddim", eta=eta)
    errors = []
    for steps in (80, 160):
        grid = solver.times(steps).tolist()
        at_times = zip(grid, moments(solver, S, grid), strict=True)
        errors.append(
            max(max(abs(mean - t * MEANS[0]), abs(var - (1 - t) ** 2 - (t * S) ** 2)) for t, (mean, var) in at_times)
        )
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)  # of first order
    assert errors[1] < 0.04

    rows, steps = 5_000, 20
    torch.manual_seed(1)  # noise() has taken seed 0
    sample = solver.sample(FlowMap(S), noise(rows), Prompt(torch.full((rows,), MEANS[0])), steps=steps)
    mean, variance = moments(solver, S, solver.times(steps).tolist())[-1]
    pixels = sample.numel()
    assert sample.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / pixels))
    assert sample.var().item() == pytest.approx(variance, abs=5 * variance * math.sqrt(2 / pixels))


# Second order


def test_heun_by_name_is_the_flow_sampler_with_its_switch_on() -> None:
    named, switched = sampler_for(FlowCfg(), "heun"), sampler_for(FlowCfg(), "flow", heun=True)
    one, other = (s.sample(toy_net, noise(), prompts(*MEANS), times=TIMES) for s in (named, switched))
    assert torch.equal(one, other)


def test_halving_heuns_step_quarters_its_error() -> None:
    truth = column(prompts(*MEANS).mean) + S * noise()
    coarse, fine = (
        Heun(HeunCfg()).sample(FlowMap(S), noise(), prompts(*MEANS), steps=n) - truth for n in (128, 256)
    )
    torch.testing.assert_close(coarse / fine, torch.full_like(fine, 4.0), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "trained",
    [FlowCfg(), DDPMCfg(timesteps=8192), DDPMCfg(timesteps=8192, prediction="eps")],
    ids=["velocity", "v", "eps"],
)
def test_halving_the_step_of_dpm_solver_quarters_its_error(trained: SamplerCfg) -> None:
    solver = sampler_for(trained, "dpmpp")

    def on_path(t: float) -> Tensor:  # the flow keeps (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2)
        alpha, sigma = solver.path.amplitudes(t)
        return alpha * column(prompts(*MEANS).mean) + math.sqrt(alpha**2 * S**2 + sigma**2) * noise()

    errors = []
    for steps in (64, 128):
        grid = [0.125 + 0.75 * k / steps for k in range(steps + 1)]
        end = solver.walk(exact_net(solver, S), on_path(grid[0]), grid, prompts(*MEANS), Guidance(), refuse)
        errors.append(end - on_path(grid[-1]))
    torch.testing.assert_close(errors[0] / errors[1], torch.full_like(errors[0], 4.0), rtol=0.05, atol=0)


def test_dpm_solver_is_of_second_order_up_to_a_logarithm_from_noise_to_data() -> None:
    # Steps that are even in t are not short in lambda at the ends. Step k errs there by 1 / (k steps^2), in sum by
    # (a + b log(steps)) / steps^2, so that steps^2 times the error grows by the same amount with each doubling.
    truth = column(prompts(*MEANS).mean) + S * noise()
    scaled = [
        n**2 * (DPMpp(DPMppCfg()).sample(FlowMap(S), noise(), prompts(*MEANS), steps=n) - truth)
        for n in (128, 256, 512)
    ]
    torch.testing.assert_close(scaled[2] - scaled[1], scaled[1] - scaled[0], rtol=0.05, atol=0)


def test_dpm_solver_makes_fewer_errors_than_ddim_at_the_same_cost() -> None:
    truth = column(prompts(*MEANS).mean) + S * noise()
    for steps in (8, 16, 32):
        two, one = (
            sampler_for(FlowCfg(), name).sample(FlowMap(S), noise(), prompts(*MEANS), steps=steps) - truth
            for name in ("dpmpp", "ddim")
        )
        assert (two.abs() < one.abs() / 2).all()


@pytest.mark.parametrize("trained", [FlowCfg(), DDIMCfg(), DDIMCfg(zero_terminal_snr=True)], ids=str)
def test_one_and_two_steps_of_dpm_solver_are_of_first_order(trained: SamplerCfg) -> None:
    for times in ([0.0, 1.0], [0.0, 0.6, 1.0]):
        one, other = (
            sampler_for(trained, name).sample(toy_net, noise(), prompts(*MEANS), times=times)
            for name in ("dpmpp", "ddim")
        )
        close(one, other)


def test_dpm_solver_forgets_everything_between_samples() -> None:
    solver = DPMpp(DPMppCfg())
    before = dict(vars(solver))
    first = solver.sample(toy_net, noise(), prompts(*MEANS))
    solver.sample(toy_net, noise(5, seed=1), prompts(1, 2, 3, 4, 5), steps=9)
    assert torch.equal(solver.sample(toy_net, noise(), prompts(*MEANS)), first)
    assert vars(solver) == before


def theirs(solver: Solver, grid: list[float], **kind: Any) -> Tensor:
    """diffusers' trajectory over the times of ``grid``, in float32 tables and steps."""
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint",
        final_sigmas_type="zero", **kind,
    )  # fmt: skip
    scheduler.set_timesteps(len(grid) - 1)
    scheduler.timesteps = torch.tensor([round((1 - t) * 1000) - 1 for t in grid[:-1]])
    ratios = [math.exp(-solver.path.log_ratio(t)) for t in grid[:-1]]
    if kind.get("use_flow_sigmas"):
        ratios = [1 - t for t in grid[:-1]]
    scheduler.sigmas = torch.tensor([*ratios, 0.0])
    x = noise()
    for index, t in zip(scheduler.timesteps, grid, strict=False):
        answer = toy_net(x, torch.full((3,), t, dtype=torch.float64), torch.zeros(3), prompts(*MEANS))
        answer = -answer if kind.get("use_flow_sigmas") else answer  # their velocity points to the noise
        x = scheduler.step(answer, index, x).prev_sample.double()
    return x


@pytest.mark.parametrize("chain", [{"schedule": "cosine"}, {"schedule": "linear"},
                                   {"schedule": "linear", "prediction": "eps"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_dpm_solver_on_a_chain_is_that_of_diffusers(chain: dict[str, Any], steps: int) -> None:
    solver = sampler_for(DDPMCfg(**chain), "dpmpp")
    ours = solver.sample(toy_net, noise(), prompts(*MEANS), steps=steps)
    reference = theirs(
        solver, solver.times(steps).tolist(),
        beta_schedule={"cosine": "squaredcos_cap_v2", "linear": "linear"}[chain["schedule"]],
        prediction_type="epsilon" if chain.get("prediction") == "eps" else "v_prediction",
    )  # fmt: skip
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-3 * reference.abs().max().item())


@pytest.mark.parametrize("steps", [3, 12])
def test_dpm_solver_on_velocities_is_that_of_diffusers(steps: int) -> None:
    # Theirs cannot start at pure noise, where alpha = 0, so both start at 0.01.
    solver = DPMpp(DPMppCfg())
    grid = [0.01 + 0.99 * k / steps for k in range(steps)] + [1.0]
    ours = solver.walk(toy_net, noise(), grid, prompts(*MEANS), Guidance(), refuse)
    reference = theirs(solver, grid, use_flow_sigmas=True, prediction_type="flow_prediction")
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4 * reference.abs().max().item())


def test_a_switch_of_guidance_does_not_cost_dpm_solver_its_order() -> None:
    # Between 0.25 and 0.75 the guided velocity is that of data around 2 m: the exact end is three exact flows in turn.
    exact, at = FlowMap(S), {t: torch.full((1, 1, 1, 1), t, dtype=torch.float64) for t in (0.125, 0.25, 0.75, 0.875)}
    mean = column(prompts(*MEANS).mean)
    x = noise()
    for (t, s), scale in zip(pairwise(at.values()), (1, 2, 1), strict=True):
        x = exact.transport(x, t, s, scale * mean)
    errors = []
    for steps in (192, 384):
        grid = [0.125 + 0.75 * k / steps for k in range(steps + 1)]
        inside = Guidance(2.0, start=0.25, stop=0.75)
        errors.append(DPMpp(DPMppCfg()).walk(exact, noise(), grid, prompts(*MEANS), inside, refuse) - x)
    torch.testing.assert_close(errors[0] / errors[1], torch.full_like(x, 4.0), rtol=0.05, atol=0)


# Restart


@pytest.mark.parametrize("how", [{"steps": 1}, {"steps": 2}, {"steps": 4}, {"times": [0, 0.2, 0.7, 1]}], ids=str)
def test_restarts_of_the_exact_flow_map_keep_the_marginals(how: dict[str, Any]) -> None:
    rows = 20_000
    torch.manual_seed(1)  # noise() has taken seed 0
    cond = Prompt(torch.full((rows,), MEANS[0]))
    sample = Restart(RestartCfg()).sample(ladder_net(S, 128), noise(rows), cond, **how)
    pixels = sample.numel()
    assert sample.mean().item() == pytest.approx(MEANS[0], abs=5 * S / math.sqrt(pixels))
    assert sample.var().item() == pytest.approx(S**2, abs=5 * S**2 * math.sqrt(2 / pixels))


def test_one_restart_is_one_shortcut_and_more_of_them_forget_the_noise_they_started_from() -> None:
    restart, shortcut = sampler_for(ShortcutCfg(), "restart"), sampler_for(ShortcutCfg())
    one, other = (s.sample(toy_net, noise(), prompts(*MEANS), steps=1, randn=refuse) for s in (restart, shortcut))
    assert torch.equal(one, other)
    # x1 = m + S noise, then x1' = flow from s x1 + (1 - s) z: the second jump is affine in the first and in z
    net, mean, fresh = ladder_net(S, 128), column(prompts(*MEANS).mean), noise(seed=3)
    two = restart.sample(net, noise(), prompts(*MEANS), times=[0, 0.4, 1], randn=lambda x: fresh)
    x = 0.4 * (mean + S * noise()) + 0.6 * fresh
    close(two, mean + S / math.sqrt(0.6**2 + 0.4**2 * S**2) * (x - 0.4 * mean), atol=1e-9)


def test_restarts_ask_for_the_whole_rest_of_the_way() -> None:
    asked: list[tuple[float, float]] = []

    def net(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        asked.append((t.item(), dt.item()))
        return torch.zeros_like(x)

    restart = sampler_for(ShortcutCfg(grid=32), "restart")
    restart.sample(net, noise(1), prompts(0), times=[0, 0.5, 0.9, 0.98, 1])
    assert asked == [pytest.approx(pair) for pair in [(0, 1), (0.5, 0.5), (0.9, 0.1), (0.98, 0)]]  # 0.02 < 1/32


# Guidance that the network holds


@pytest.mark.parametrize("name", solvers_of(ShortcutCfg()))
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_every_solver_applies_the_trained_guidance_once(name: str, guidance: float) -> None:
    times = [0, 0.3, 0.305, 0.55, 0.995, 1]  # two steps are shorter than the grid, the last one and an early one
    held, plain = (sampler_for(ShortcutCfg(train_guidance=w), name) for w in (2.0, 1.0))
    shifted = Prompt(2.0 * guidance * prompts(*MEANS).mean)

    def sample(solver: Solver, net: FlowMap, cond: Prompt, scale: float) -> Tensor:
        return solver.sample(net, noise(), cond, times=times, guidance=scale, randn=lambda x: noise(len(x), 4))

    close(sample(held, FlowMap(S, held=2.0), prompts(*MEANS), guidance), sample(plain, FlowMap(S), shifted, 1.0))


@pytest.mark.parametrize("name", ["heun", "dpmpp", "ddim", "ddpm", "flow"])
def test_solvers_without_long_steps_ask_shortcut_networks_for_velocities_only(name: str) -> None:
    def net(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        assert not dt.any()
        assert (t < 1).all()
        return toy_net(x, t, dt, cond)

    sampler_for(ShortcutCfg(), name).sample(net, noise(), prompts(*MEANS), times=TIMES)
