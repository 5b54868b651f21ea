"""Options of a generation: shifted times, guidance on an interval, CFG-Zero*."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from configs.checks import ConfigError
from configs.sampler_cfg import DDPMCfg, FlowCfg, SamplerCfg, ShortcutCfg
from samplers import Guidance, Guided, sampler_for
from samplers.guidance import optimal_scale
from tests.gaussian import Prompt, prompts, toy_net

MEANS = (0.7, -1.2, 0.0)


def noise(rows: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Recorder:
    """toy_net that remembers the time and the number of rows of its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, int]] = []

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        self.calls.append((t[0].item(), len(x)))
        return toy_net(x, t, dt, cond)


# Shift


@given(steps=st.integers(1, 200), shift=st.floats(0.05, 20))
def test_a_shift_multiplies_the_ratio_of_noise_to_data_at_every_time(steps: int, shift: float) -> None:
    solver = sampler_for(FlowCfg())
    regular, shifted = solver.times(steps), solver.times(steps, shift)
    assert (shifted[0], shifted[-1]) == (0, 1)
    assert (shifted.diff() > 0).all()
    inner = slice(1, -1)
    ratio, wanted = ((1 - t[inner]) / t[inner] for t in (shifted, regular))
    torch.testing.assert_close(ratio, shift * wanted, rtol=1e-9, atol=0)
    sigma = 1 - regular  # Esser et al. 2024, as usually printed
    torch.testing.assert_close(1 - shifted, shift * sigma / (1 + (shift - 1) * sigma), rtol=0, atol=1e-12)
    back = shifted / (1 / shift - (1 / shift - 1) * shifted)  # the same map with 1 / shift
    torch.testing.assert_close(back, regular, rtol=0, atol=1e-12)
    assert torch.equal(solver.times(steps, 1.0), torch.arange(steps + 1, dtype=torch.float64) / steps)


def test_shifted_times_of_a_chain_stay_on_it_and_may_not_collide() -> None:
    solver = sampler_for(DDPMCfg(timesteps=100, steps=10))
    t = solver.times(10, 3.0)
    torch.testing.assert_close(100 * t, (100 * t).round())
    assert (t - sampler_for(FlowCfg()).times(10, 3.0)).abs().max() <= 0.5001 / 100
    with pytest.raises(ValueError, match=r"shift is 3 with 90 steps, so that times has .* fall on step 100 of"):
        solver.times(90, 3.0)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_a_bad_shift_is_refused_with_its_value(shift: float) -> None:
    with pytest.raises(ValueError, match=f"shift is {shift!r}, but it must be a positive number"):
        sampler_for(FlowCfg()).times(4, shift)


@pytest.mark.parametrize("cfg", [FlowCfg(), ShortcutCfg(), DDPMCfg()], ids=lambda cfg: type(cfg).__name__)
def test_a_shift_of_regular_steps_is_a_list_of_times(cfg: SamplerCfg) -> None:
    solver = sampler_for(cfg)
    draw: dict[str, Any] = {"randn": lambda x: noise(len(x), 2)}
    shifted = solver.sample(toy_net, noise(), prompts(*MEANS), steps=5, shift=2.0, **draw)
    listed = solver.sample(toy_net, noise(), prompts(*MEANS), times=solver.times(5, 2.0), **draw)
    regular = solver.sample(toy_net, noise(), prompts(*MEANS), steps=5, **draw)
    assert torch.equal(shifted, listed)
    assert not torch.equal(shifted, regular)


# Interval


@pytest.mark.parametrize("name", ["flow", "heun", "dpmpp", "ddim"])
def test_outside_of_its_interval_guidance_is_off_and_costs_nothing(name: str) -> None:
    solver, net = sampler_for(FlowCfg(), name), Recorder()
    solver.sample(net, noise(), prompts(*MEANS), steps=8, guidance=Guidance(3.0, start=0.25, stop=0.625))
    starts = [k / 8 for k in range(8)]
    rows = {t: 6 if 0.25 <= t < 0.625 else 3 for t in starts}
    expected = [(t, rows[t]) for t in starts]
    if name == "heun":  # the second call of a step has the scale of the step
        expected = [pair for t in starts for pair in [(t, rows[t]), (t + 1 / 8, rows[t])]][:-1]
    assert net.calls == expected


@pytest.mark.parametrize("cfg", [FlowCfg(), ShortcutCfg(train_guidance=2.0), DDPMCfg()], ids=str)
def test_the_whole_interval_is_plain_guidance_and_an_interval_without_a_step_is_none(cfg: SamplerCfg) -> None:
    def sample(guidance: float | Guidance) -> Tensor:
        solver = sampler_for(cfg)
        return solver.sample(
            toy_net, noise(), prompts(*MEANS), steps=4, guidance=guidance, randn=lambda x: noise(len(x), 2)
        )

    assert torch.equal(sample(Guidance(3.0)), sample(3.0))
    assert torch.equal(sample(Guidance(3.0, start=0.3, stop=0.45)), sample(1.0))
    assert not torch.equal(sample(Guidance(3.0, start=0.3, stop=0.6)), sample(1.0))


def test_an_interval_or_a_share_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"guidance interval is \(0\.5, 0\.5\)"):
        Guidance(2.0, start=0.5, stop=0.5)
    with pytest.raises(ConfigError, match=r"zero_init is 1\.0"):
        Guidance(zero_init=1.0)


# CFG-Zero*


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_optimal_scale_is_the_least_squares_fit_of_each_row(dtype: torch.dtype) -> None:
    cond, null = noise(5, seed=1).to(dtype), noise(5, seed=2).to(dtype)
    fits = [torch.linalg.lstsq(b.double().reshape(-1, 1), a.double().reshape(-1, 1)).solution.item()
            for a, b in zip(cond, null, strict=True)]  # fmt: skip
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 1e-6}[dtype]
    expected = torch.tensor(fits, dtype=torch.float64)
    torch.testing.assert_close(optimal_scale(cond, null).double(), expected, rtol=0, atol=tolerance)
    assert not optimal_scale(cond, torch.zeros_like(null)).any()


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.5, torch.tensor([0.0, 1.0, 3.0])], ids=str)
def test_cfg_zero_extrapolates_from_the_projection_of_the_prompted_velocity(scale: Any) -> None:
    x, t, cond = noise(), torch.full((3,), 0.3, dtype=torch.float64), prompts(*MEANS)
    still = torch.zeros_like(t)
    u_cond = toy_net(x, t, still, cond)
    u_null = toy_net(x, t, still, cond.drop(torch.ones(3, dtype=torch.bool)))
    projected = torch.stack([(a * b).sum() / (b * b).sum() * b for a, b in zip(u_cond, u_null, strict=True)])
    factor = scale.double().view(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale
    answer = Guided(toy_net, scale, cfg_zero=True)(x, t, still, cond)
    torch.testing.assert_close(answer, projected + factor * (u_cond - projected))


def test_cfg_zero_without_guidance_changes_nothing_and_costs_nothing() -> None:
    net = Recorder()
    one = sampler_for(FlowCfg()).sample(net, noise(), prompts(*MEANS), steps=4, guidance=Guidance(cfg_zero=True))
    assert torch.equal(one, sampler_for(FlowCfg()).sample(toy_net, noise(), prompts(*MEANS), steps=4))
    assert [rows for _, rows in net.calls] == [3] * 4


@pytest.mark.parametrize("name", ["flow", "heun", "ddim", "dpmpp"])
def test_zero_init_is_a_velocity_of_zero_in_its_share_of_the_steps(name: str) -> None:
    solver, net = sampler_for(FlowCfg(), name), Recorder()
    sample = solver.sample(net, noise(), prompts(*MEANS), steps=10, guidance=Guidance(2.0, zero_init=0.2))
    assert min(t for t, _ in net.calls) == 0.2
    if name in ("flow", "ddim"):  # one-step solvers: a network that answers zero there gives the same

        def muted(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
            return toy_net(x, t, dt, cond) * (t >= 0.2 - 1e-12).double().view(-1, 1, 1, 1)

        expected = solver.sample(muted, noise(), prompts(*MEANS), steps=10, guidance=2.0)
        torch.testing.assert_close(sample, expected, rtol=0, atol=1e-12)


@given(steps=st.integers(1, 300), percent=st.integers(0, 99))
def test_still_steps_are_the_whole_steps_in_their_share_and_never_all(steps: int, percent: int) -> None:
    still = Guidance(zero_init=percent / 100).still_steps(steps)
    assert still == percent * steps // 100
    assert still < steps


@pytest.mark.parametrize("options", [{"cfg_zero": True}, {"zero_init": 0.1}], ids=str)
@pytest.mark.parametrize(
    ("trained", "name", "remedy"),
    [
        (ShortcutCfg(), "shortcut", "turn it off, or take the sampler flow, heun or dpmpp"),
        (ShortcutCfg(), "restart", "turn it off, or take the sampler flow, heun or dpmpp"),
        (DDPMCfg(), "ddpm", "turn it off"),
        (DDPMCfg(), "dpmpp", "turn it off"),
    ],
)
def test_cfg_zero_is_refused_where_no_velocity_is_asked(
    options: dict[str, Any], trained: SamplerCfg, name: str, remedy: str
) -> None:
    (key,) = options
    with pytest.raises(ValueError, match=f"{key} is on, but it corrects the instantaneous velocity .* {remedy}$"):
        sampler_for(trained, name).sample(toy_net, noise(), prompts(*MEANS), guidance=Guidance(2.0, **options))
