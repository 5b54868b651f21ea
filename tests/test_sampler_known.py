"""Starting from given data, keeping part of it, negative prompts, and what lies between prompts and between seeds."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler_base import MEANS, noise, row_noise
from torch import Tensor

from configs.checks import ConfigError
from configs.sampler_cfg import (
    DDIMCfg,
    DDPMCfg,
    FlowCfg,
    FlowMapCfg,
    SamplerCfg,
    ShortcutCfg,
    SplitCfg,
    TrajectoryCfg,
)
from samplers import SAMPLERS, Guidance, Solver, build_sampler, sampler_for, solvers_of
from samplers.between import Between, noise_between
from samplers.bridge import Straight
from samplers.known import Known
from tests.gaussian import FlowMap, Prompt, column, exact_net, prompts, toy_net

GIVEN = torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 1, 2, 2)
LEFT = torch.tensor([[True, False], [True, False]])
every_pair = pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(sampler_for(cfg, name), id=f"{name}-on-{type(cfg).__name__}")
        for cfg in (FlowCfg(), ShortcutCfg(), TrajectoryCfg(), DDPMCfg())
        for name in solvers_of(cfg)
    ] + [pytest.param(build_sampler(DDIMCfg(eta=0.5)), id="ddim-half")],
)


def sample(sampler: Solver, net: Any = toy_net, cond: Any = None, **how: Any) -> Tensor:
    return sampler.sample(net, noise(), prompts(*MEANS) if cond is None else cond, randn=row_noise(0, 1, 2), **how)


# Starting from given data


@every_pair
def test_from_pure_noise_nothing_is_known(sampler: Solver) -> None:
    assert torch.equal(sample(sampler, steps=5, known=Known(GIVEN)), sample(sampler, steps=5))


@every_pair
@given(start=st.floats(0.01, 0.9), steps=st.integers(1, 20), shift=st.sampled_from([1.0, 3.0]))
@settings(deadline=None, max_examples=15)
def test_all_steps_are_taken_in_what_is_left_of_the_time(
    sampler: Solver, start: float, steps: int, shift: float
) -> None:
    grid = sampler.grid(steps, None, shift, start)
    expected = start + (1 - start) * sampler.times(steps, shift)
    assert grid.shape == (steps + 1,)
    assert (grid.diff() > 0).all()
    assert (grid - expected).abs().max() <= (1e-12 if isinstance(sampler.path, Straight) else 0.51e-3)
    assert torch.equal(sampler.grid(None, [0, 1], 1.0, start), grid[[0, -1]])


@pytest.mark.parametrize("steps", [1, 2, 5, 128])
@pytest.mark.parametrize("start", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("cfg_type", [t for t in SAMPLERS if issubclass(t, FlowMapCfg)])
def test_exact_jumps_carry_given_data_along_the_flow_of_a_gaussian(
    cfg_type: type[FlowMapCfg], start: float, steps: int
) -> None:
    s, mean = 0.5, column(prompts(*MEANS).mean)
    x_start = start * GIVEN + (1 - start) * noise()
    sigma = math.sqrt((1 - start) ** 2 + (start * s) ** 2)
    expected = mean + s / sigma * (x_start - start * mean)
    sampler = build_sampler(cfg_type())
    instant = (1 - start) / steps if sampler.query((1 - start) / steps) == 0 else 0.0  # where a ladder has its end
    end = sample(sampler, FlowMap(s, instant=instant), steps=steps, known=Known(GIVEN, start))
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-5)  # times are float32


@every_pair
def test_a_network_of_a_single_point_reaches_it_from_any_given_data(sampler: Solver) -> None:
    end = sample(sampler, exact_net(sampler, 0.0), steps=7, known=Known(GIVEN, 0.4))
    torch.testing.assert_close(end, column(prompts(*MEANS).mean).expand_as(end), rtol=0, atol=1e-6)


def test_steps_that_do_not_fit_into_the_rest_of_a_chain_are_refused() -> None:
    sampler = sampler_for(DDPMCfg(timesteps=20, steps=8))
    with pytest.raises(ValueError, match=r"16 steps are too many from time 0\.5 on: times has .* fall on step"):
        sampler.grid(16, start=0.5)
    assert len(sampler.grid(10, start=0.5)) == 11


@pytest.mark.parametrize("start", [-0.1, 1.0, math.nan])
def test_a_start_outside_of_the_path_is_refused(start: float) -> None:
    with pytest.raises(ConfigError, match=f"start is {start!r}, but it must be at least 0 and below 1"):
        Known(GIVEN, start)


# Keeping part of it


@every_pair
@pytest.mark.parametrize(("steps", "start"), [(1, 0.0), (1, 0.5), (6, 0.0), (6, 0.5), (128, 0.0)])
def test_what_is_kept_ends_in_the_given_data_and_the_rest_does_not(sampler: Solver, steps: int, start: float) -> None:
    end = sample(sampler, steps=steps, known=Known(GIVEN, start, LEFT))
    torch.testing.assert_close(end[..., 0], GIVEN[..., 0], rtol=0, atol=1e-12)
    assert ((end - GIVEN)[..., 1].abs() > 1e-3).all()


@every_pair
def test_what_is_kept_changes_nothing_elsewhere_for_a_network_without_neighbours(sampler: Solver) -> None:
    kept = sample(sampler, steps=6, known=Known(GIVEN, 0.3, LEFT))
    assert torch.equal(kept[..., 1], sample(sampler, steps=6, known=Known(GIVEN, 0.3))[..., 1])


@every_pair
def test_the_network_sees_the_kept_part_on_its_path_at_every_step(sampler: Solver) -> None:
    seen: list[tuple[float, Tensor]] = []

    def net(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        seen.append((t[0].item(), x))
        return toy_net(x, t, dt, cond)

    sample(sampler, net, steps=6, known=Known(GIVEN, 0.0, LEFT))
    for t, x in seen[:: 2 if sampler.name == "heun" else 1]:  # Heun's second call is inside of the step
        alpha, sigma = sampler.path.amplitudes(t) if t > 0 else (0.0, 1.0)
        torch.testing.assert_close(x[..., 0], alpha * GIVEN[..., 0] + sigma * noise()[..., 0], rtol=0, atol=1e-6)


@every_pair
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_given_data_and_ways_do_not_depend_on_the_batch_they_are_in(sampler: Solver, guidance: float) -> None:
    weight = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    cond = Between(prompts(*MEANS), prompts(-1.0, 2.0, 0.5), weight)
    options = Guidance(guidance, negative=prompts(0.1, 0.2, 0.3))
    together = sample(sampler, cond=cond, steps=4, guidance=options, known=Known(GIVEN, 0.2, LEFT))
    for i in range(3):
        one = slice(i, i + 1)
        alone = sampler.sample(
            toy_net, noise()[one], cond[one], steps=4, randn=row_noise(i), known=Known(GIVEN[one], 0.2, LEFT),
            guidance=Guidance(guidance, negative=prompts(0.1, 0.2, 0.3)[one]),
        )
        assert torch.equal(alone, together[one])


# Between two prompts


@every_pair
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_between_two_gaussians_of_one_width_lies_the_gaussian_of_the_mean_between(
    sampler: Solver, guidance: float
) -> None:
    second, weight = (1.0, 0.4, -2.0), (0.25, 0.5, 0.8)
    middle = prompts(*((1 - w) * a + w * b for a, b, w in zip(MEANS, second, weight, strict=True)))
    cond = Between(prompts(*MEANS), prompts(*second), torch.tensor(weight))
    net = exact_net(sampler, 0.5)  # its answers are affine in the mean
    way, direct = (sample(sampler, net, c, steps=5, guidance=guidance) for c in (cond, middle))
    torch.testing.assert_close(way, direct, rtol=0, atol=1e-6)


@every_pair
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_a_way_between_prompts_begins_and_ends_in_them_exactly(sampler: Solver, guidance: float) -> None:
    second = prompts(1.0, 0.4, -2.0)
    for weight, end in ((0.0, prompts(*MEANS)), (1.0, second)):
        cond = Between(prompts(*MEANS), second, torch.full((3,), weight))
        assert torch.equal(*(sample(sampler, cond=c, steps=5, guidance=guidance) for c in (cond, end)))


def test_rows_between_prompts_are_batched_as_prompts_are() -> None:
    first, second = prompts(1.0, 1.0, 2.0), prompts(3.0, 3.0, 3.0)
    cond = Between(first, second, torch.tensor([0.5, 0.5, 0.5]))
    assert cond.same().tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    wide = cond.concat(prompts(7.0, 8.0, 9.0)).repeat(2)
    assert wide.first.mean.tolist() == [1, 1, 2, 7, 8, 9] * 2
    assert wide.second.mean.tolist() == [3, 3, 3, 7, 8, 9] * 2
    assert wide.weight.tolist() == [0.5] * 3 + [0.0] * 3 + [0.5] * 3 + [0.0] * 3
    dropped = cond.drop(torch.tensor([True, False, False]))
    assert (dropped.first.mean[0], dropped.second.mean[0]) == (0, 0)


# Between two seeds


@given(weight=st.floats(0, 1))
def test_between_two_draws_of_noise_every_point_is_standard_normal(weight: float) -> None:
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    w = torch.tensor([weight], dtype=torch.float64)
    a, b = noise_between(one, none, w).item(), noise_between(none, one, w).item()  # it is linear: these decide it
    assert a**2 + b**2 == pytest.approx(1, abs=1e-12)
    assert math.atan2(b, a) == pytest.approx(weight * math.pi / 2, abs=1e-12)


def test_a_way_between_draws_begins_and_ends_in_them_exactly() -> None:
    first, second = noise().float(), row_noise(5, 6, 7)(noise()).float()
    mixed = noise_between(first, second, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))
    assert torch.equal(mixed[0], first[0])
    assert torch.equal(mixed[1], second[1])
    torch.testing.assert_close(mixed[2], (first[2] + second[2]) / math.sqrt(2))
    assert mixed.dtype == torch.float32


# Negative prompts


@pytest.mark.parametrize("steps", [1, 3, 64, 128, 200])
@pytest.mark.parametrize(
    "cfg",
    [
        FlowCfg(), DDPMCfg(), ShortcutCfg(train_guidance=2.0), SplitCfg(train_guidance=1.5), TrajectoryCfg(),
        ShortcutCfg(train_guidance=1.5, most_guidance=3.0),
    ],
    ids=str,
)
def test_guidance_leads_from_the_negative_prompt_to_the_prompt_at_any_number_of_steps(
    cfg: SamplerCfg, steps: int
) -> None:
    sampler, held = build_sampler(cfg), getattr(cfg, "train_guidance", 1.0)
    net = FlowMap(0.0, held=held) if isinstance(cfg, FlowMapCfg) else exact_net(sampler, 0.0)
    away = (-0.5, 0.4, 1.0)
    end = sample(sampler, net, steps=steps, guidance=Guidance(2.5, negative=prompts(*away)))
    # what a prompt means to this network is held times its mean
    wanted = prompts(*(held * (n + 2.5 * (c - n)) for c, n in zip(MEANS, away, strict=True)))
    torch.testing.assert_close(end, column(wanted.mean).expand_as(end), rtol=0, atol=1e-4)


@every_pair
def test_nothing_as_a_negative_prompt_is_plain_guidance(sampler: Solver) -> None:
    nothing = prompts(*MEANS).drop(torch.ones(3, dtype=torch.bool))
    plain, against = (sample(sampler, steps=4, guidance=g) for g in (2.5, Guidance(2.5, negative=nothing)))
    torch.testing.assert_close(against, plain, rtol=0, atol=1e-12)
    other = sample(sampler, steps=4, guidance=Guidance(2.5, negative=prompts(2.0, 2.0, 2.0)))
    assert not torch.allclose(other, plain)


@every_pair
def test_without_guidance_a_negative_prompt_changes_nothing(sampler: Solver) -> None:
    against = sample(sampler, steps=4, guidance=Guidance(1.0, negative=prompts(2.0, 2.0, 2.0)))
    assert torch.equal(against, sample(sampler, steps=4))
