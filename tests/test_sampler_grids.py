"""Grids of times: any that can be walked rises from 0 to 1 in steps that sum to 1; all others are refused."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.checks import ConfigError
from configs.generate_cfg import GenerateCfg
from configs.sampler_cfg import DDPMCfg, FlowCfg
from samplers import Solver, sampler_for
from samplers.bridge import Straight
from tests.gaussian import exact_net, prompts

PLAIN, CHAIN = sampler_for(FlowCfg()), sampler_for(DDPMCfg(timesteps=100, steps=10))
SOLVERS = [sampler_for(cfg, name) for cfg in (FlowCfg(), DDPMCfg()) for name in ("ddim", "ddpm", "dpmpp")] + [
    sampler_for(FlowCfg(), name) for name in ("flow", "heun")
]
both = pytest.mark.parametrize("solver", [PLAIN, CHAIN], ids=["straight", "chain"])
some_floats = st.floats() | st.floats(0, 1) | st.sampled_from([0.0, -0.0, 1.0, 0.5, 5e-324, 1 - 2**-53, 2**-1000])


def is_grid(times: torch.Tensor, steps: int) -> None:
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert (times[0], times[-1]) == (0, 1)
    assert (times.diff() > 0).all()
    assert math.fsum(times.diff().tolist()) == pytest.approx(1, abs=1e-12)


def one_sentence(error: ValueError, *words: str) -> None:
    said = str(error)
    assert "\n" not in said
    assert any(word in said for word in words), said


@both
@given(steps=st.integers(-3, 300) | st.integers(), shift=st.just(1.0) | st.floats(1e-3, 1e3) | st.floats())
@example(steps=128, shift=1e300)  # shift - 1 is shift
@example(steps=2, shift=5e-324)
@example(steps=10**12, shift=1.0)
@example(steps=10**30, shift=1.0)
@settings(deadline=None, max_examples=150)
def test_any_number_of_steps_and_any_shift_give_a_grid_or_one_sentence(
    solver: Solver, steps: int, shift: float
) -> None:
    try:
        times = solver.times(steps, shift)
    except ValueError as error:
        one_sentence(error, f"steps is {steps}", f"shift is {shift!r}", f"shift is {shift:g} with {steps} steps")
        assert steps < 1 or not 1e-3 <= shift <= 1e3 or steps > 100 or solver is CHAIN
    else:
        is_grid(times, steps)


@both
@pytest.mark.parametrize("steps", [True, 2.0, "4", None, math.nan])
def test_steps_that_are_no_whole_number_are_refused(solver: Solver, steps: Any) -> None:
    with pytest.raises(ValueError, match="it must be a positive whole number"):
        solver.times(steps)


@both
@given(st.lists(some_floats, max_size=7) | st.lists(st.floats(0, 1), max_size=7).map(lambda x: [0.0, *sorted(x), 1.0]))
@settings(deadline=None, max_examples=300)
def test_any_list_of_times_is_walked_or_refused_in_one_sentence(solver: Solver, times: list[float]) -> None:
    rising = len(times) > 1 and times[0] == 0 and times[-1] == 1 and all(t < s for t, s in pairwise(times))
    on_chain = [round(100 * (1 - t)) for t in times] if rising else []
    apart = solver is PLAIN or len(set(on_chain)) == len(times)
    try:
        grid = solver.irregular(times)
    except ValueError as error:
        one_sentence(error, "times is [", "times has ")
        assert not (rising and apart)
    else:
        assert rising
        assert apart
        is_grid(grid, len(times) - 1)
        assert (grid - torch.tensor(times, dtype=torch.float64)).abs().max() <= (0 if solver is PLAIN else 0.5001 / 100)


@given(
    solver=st.sampled_from(SOLVERS),
    inner=st.sets(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=5),
)
@settings(deadline=None, max_examples=150)
def test_a_single_point_is_reached_over_any_times_however_near_each_other(solver: Solver, inner: set[float]) -> None:
    times = [0.0, *sorted(inner), 1.0]
    try:
        solver.irregular(times)
    except ValueError:
        assert not isinstance(solver.path, Straight)  # on a chain, they may fall together
        return
    noise = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    point = prompts(0.7, -1.2)
    sample = solver.sample(exact_net(solver, 0.0), noise, point, times=times)
    wanted = point.mean.reshape(2, 1, 1, 1).expand_as(sample)
    torch.testing.assert_close(sample, wanted, rtol=0, atol=1e-7)


@given(st.text(max_size=30) | st.lists(some_floats.map(str) | st.text(max_size=5), max_size=6).map(",".join))
@settings(deadline=None, max_examples=300)
def test_any_text_as_times_is_a_list_to_walk_or_refused_in_one_sentence(text: str) -> None:
    try:
        times = GenerateCfg(prompt=("x",), times=text).time_list
    except ConfigError as error:
        one_sentence(error, f"times is {text!r}")
    else:
        assert times is None or is_grid(PLAIN.irregular(times), len(times) - 1) is None
        assert (times is None) == (not text.strip())
