"""What holds for every sampler of the registry, and which sampler may drive which network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from configs.sampler_cfg import DDIMCfg, DDPMCfg, FlowCfg, SamplerCfg, ShortcutCfg
from samplers import (
    SAMPLERS,
    SOLVERS,
    Guidance,
    Guided,
    Sampler,
    SamplerMismatch,
    Solver,
    build_sampler,
    sampler_for,
    solvers_of,
)
from samplers.flow import FlowMatching
from samplers.guidance import RowGuided
from samplers.shortcut import Shortcut
from tests.gaussian import Prompt, column, exact_net, prompts, toy_net

every_sampler = pytest.mark.parametrize(
    "sampler", [pytest.param(build_sampler(cfg_type()), id=cfg_type.__name__) for cfg_type in SAMPLERS]
)
every_pair = pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(sampler_for(cfg_type(), name), id=f"{name}-on-{cfg_type.__name__}")
        for cfg_type in SAMPLERS
        for name in solvers_of(cfg_type())
    ],
)
MEANS = (0.7, -1.2, 0.0)


def noise(rows: int = 3) -> Tensor:
    return torch.stack(
        [torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(rows)]
    )


def row_noise(*seeds: int) -> Callable[[Tensor], Tensor]:
    """One stream of noise per row."""
    streams = [torch.Generator().manual_seed(100 + seed) for seed in seeds]
    return lambda x: torch.stack([torch.randn(x.shape[1:], generator=one, dtype=x.dtype) for one in streams])


# Sampling


@every_pair
@given(inner=st.sets(st.integers(1, 999), max_size=6))
@settings(deadline=None, max_examples=15)
def test_a_single_point_is_reached_exactly_over_any_times(sampler: Solver, inner: set[int]) -> None:
    times = [0.0, *(n / 1000 for n in sorted(inner)), 1.0]
    sample = sampler.sample(exact_net(sampler, 0.0), noise(), prompts(*MEANS), times=times)
    torch.testing.assert_close(sample, column(prompts(*MEANS).mean).expand_as(sample), rtol=0, atol=1e-7)


@every_pair
@pytest.mark.parametrize("guidance", [1.0, 2.0, Guidance(2.0, start=0.3, stop=0.7)], ids=["1", "2", "2 inside"])
def test_samples_do_not_depend_on_the_batch_they_are_in(sampler: Solver, guidance: Any) -> None:
    together = sampler.sample(toy_net, noise(), prompts(*MEANS), steps=6, guidance=guidance, randn=row_noise(0, 1, 2))
    for i in range(3):
        alone = sampler.sample(
            toy_net, noise()[i : i + 1], prompts(MEANS[i]), steps=6, guidance=guidance, randn=row_noise(i)
        )
        assert torch.equal(alone, together[i : i + 1])


@every_pair
def test_sampling_is_regular_by_default_and_keeps_its_inputs_and_dtype(sampler: Solver) -> None:
    start = noise().float()
    copy = start.clone()
    default, named, listed = (
        sampler.sample(toy_net, start, prompts(*MEANS), randn=row_noise(0, 1, 2), **how)
        for how in ({}, {"steps": sampler.cfg.steps}, {"times": sampler.times(sampler.cfg.steps)})
    )
    assert torch.equal(default, named)
    assert torch.equal(default, listed)
    assert torch.equal(start, copy)
    assert default.dtype == torch.float32


@every_pair
def test_sampling_keeps_no_graph(sampler: Solver) -> None:
    weight = torch.ones((), requires_grad=True)
    sample = sampler.sample(lambda x, t, dt, cond: weight * x, noise(), prompts(*MEANS), steps=2)
    assert not sample.requires_grad


@every_pair
@given(steps=st.integers(1, 128))
@settings(deadline=None, max_examples=25)
def test_regular_times_rise_from_noise_to_data(sampler: Solver, steps: int) -> None:
    times = sampler.times(steps)
    assert times.shape == (steps + 1,)
    assert (times[0], times[-1]) == (0, 1)
    assert (times.diff() > 0).all()
    assert (times - torch.arange(steps + 1) / steps).abs().max() <= 0.51e-3
    torch.testing.assert_close(sampler.irregular(times), times)


@every_pair
@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ([0, 0.5], r"times is \[0\.0, 0\.5\], but times must rise strictly from 0 \(noise\) to 1 \(data\)"),
        ([0.1, 1], r"times is \[0\.1, 1\.0\], but times must rise strictly"),
        ([0, 0.6, 0.4, 1], r"times is \[0\.0, 0\.6, 0\.4, 1\.0\], but times must rise strictly"),
        ([0, 0.5, 0.5, 1], r"times is \[0\.0, 0\.5, 0\.5, 1\.0\], but times must rise strictly"),
        ([0, float("nan"), 1], r"times is \[0\.0, nan, 1\.0\], but every time must be a finite number"),
        ([], r"times is \[\], but it must be a flat list of two or more times"),
        ([[0, 1]], r"times is \[0\.0, 1\.0\], but it must be a flat list"),
    ],
)
def test_bad_times_are_refused_with_their_values(sampler: Solver, times: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sampler.sample(toy_net, noise(), prompts(*MEANS), times=times)


@every_pair
@pytest.mark.parametrize("steps", [0, -3, 2.5, True])
def test_bad_step_counts_are_refused_with_their_value(sampler: Solver, steps: Any) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps!r}, but it must be a positive whole number"):
        sampler.sample(toy_net, noise(), prompts(*MEANS), steps=steps)


@every_pair
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_samples_keep_a_narrow_dtype_while_times_are_wide(sampler: Solver, dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def net(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        seen.extend([t.dtype, dt.dtype])
        return x

    assert sampler.sample(net, noise().to(dtype), prompts(*MEANS), steps=3).dtype == dtype
    assert set(seen) == {torch.promote_types(dtype, torch.float32)}


def test_steps_and_times_together_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 2 and times is given too"):
        build_sampler(FlowCfg()).sample(toy_net, noise(), prompts(*MEANS), steps=2, times=[0, 1])
    with pytest.raises(ValueError, match=r"shift is 3\.0 and times is given too"):
        build_sampler(FlowCfg()).sample(toy_net, noise(), prompts(*MEANS), shift=3.0, times=[0, 1])


# The loss


@pytest.mark.parametrize("cfg_type", SAMPLERS)
@pytest.mark.parametrize("batch", [1, 2, 7, 32])
@pytest.mark.parametrize("power", [0.0, 0.75])
def test_loss_is_the_weighted_mean_of_row_errors(cfg_type: type[SamplerCfg], batch: int, power: float) -> None:
    sampler = build_sampler(cfg_type(loss_power=power))
    x1, cond = noise(batch), Prompt(torch.linspace(-1, 1, batch, dtype=torch.float64))
    factor = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def net(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        return factor * toy_net(x, t, dt, cond)

    torch.manual_seed(0)
    loss, parts = sampler.loss(net, x1, cond, teacher=toy_net)
    (slope,) = torch.autograd.grad(loss, factor)
    torch.manual_seed(0)
    goal = sampler.targets(x1, cond, toy_net)
    base = toy_net(goal.x, goal.t, goal.dt, goal.cond)
    error = ((0.8 * base - goal.y) ** 2).mean((1, 2, 3))
    gain = 1 if goal.gain is None else goal.gain
    weight = goal.weight / (error * gain**2 + 0.01) ** power
    torch.testing.assert_close(loss, (weight * error).mean())
    torch.testing.assert_close(slope, (weight * (2 * (0.8 * base - goal.y) * base).mean((1, 2, 3))).mean())
    assert parts.keys() == goal.parts.keys()
    for name, rows in goal.parts.items():
        torch.testing.assert_close(parts[name], error[rows].mean())
    covered = torch.zeros(len(goal.x), dtype=torch.bool)
    for rows in goal.parts.values():
        covered[rows] = True
    assert covered.all()


@every_sampler
def test_targets_carry_no_gradient(sampler: Sampler) -> None:
    learned = torch.linspace(0.5, 1, 64, dtype=torch.float64).requires_grad_()
    torch.manual_seed(0)
    goal = sampler.targets(noise(64), Prompt(learned), toy_net)
    assert not any(value.requires_grad for value in (goal.x, goal.t, goal.dt, goal.y, goal.weight))
    assert 0 < (goal.cond.mean != 0).sum() < 64


@pytest.mark.parametrize("cfg_type", SAMPLERS)
def test_prompts_are_dropped_in_their_share_of_rows_before_the_teacher_looks(cfg_type: type[SamplerCfg]) -> None:
    seen: list[Prompt] = []

    def teacher(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        seen.append(cond)
        return toy_net(x, t, dt, cond)

    rows = 4096
    torch.manual_seed(0)
    x1, cond = torch.randn(rows, 1, 1, 1), Prompt(torch.ones(rows))
    goal = build_sampler(cfg_type(condition_drop=0.3)).targets(x1, cond, teacher)
    assert (goal.cond.mean == 0).float().mean().item() == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / rows) ** 0.5)
    for part in goal.parts.values():
        count = part.stop - part.start
        share = (goal.cond.mean[part] == 0).float().mean().item()
        assert share == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / count) ** 0.5)
    for prompt in seen:
        assert torch.equal(prompt.mean, goal.cond.mean[: len(prompt.mean)])
    for share, left in ((0.0, rows), (1.0, 0)):
        goal = build_sampler(cfg_type(condition_drop=share)).targets(x1, cond, teacher)
        assert goal.cond.mean.sum() == left


@every_sampler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_narrow_networks_get_wide_times_and_a_wide_loss(sampler: Sampler, dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def net(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        seen.extend([t.dtype, dt.dtype])
        return x.to(dtype)

    wide = torch.promote_types(dtype, torch.float32)
    x1, cond = noise(16).to(dtype), Prompt(torch.zeros(16))
    torch.manual_seed(0)
    loss, _ = sampler.loss(net, x1, cond, teacher=net)
    torch.manual_seed(0)
    goal = sampler.targets(x1, cond, net)
    error = (goal.x.to(wide) - goal.y.to(wide)).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, (goal.weight * error).mean())  # same dtype, too
    assert set(seen) == {wide}


# Guidance


class Recorder:
    """toy_net that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor, Prompt]] = []

    def __call__(self, x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        self.calls.append((x, t, dt, cond))
        return toy_net(x, t, dt, cond)


def question(rows: int = 3) -> tuple[Tensor, Tensor, Tensor, Prompt]:
    t = torch.linspace(0.1, 0.5, rows, dtype=torch.float64)
    return noise(rows), t, t / 2, Prompt(torch.linspace(0.5, 1.5, rows, dtype=torch.float64))


def both_answers(rows: int = 3) -> tuple[Tensor, Tensor]:
    x, t, dt, cond = question(rows)
    return toy_net(x, t, dt, cond), toy_net(x, t, dt, cond.drop(torch.ones(rows, dtype=torch.bool)))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, -1.0])
def test_guidance_extrapolates_from_no_prompt_through_the_prompt(scale: float) -> None:
    u_cond, u_null = both_answers()
    net = Recorder()
    answer = Guided(net, scale)(*question())
    torch.testing.assert_close(answer, u_null + scale * (u_cond - u_null))
    assert [len(call[0]) for call in net.calls] == [3 if scale in (0, 1) else 6]
    assert scale not in (0, 1) or torch.equal(answer, u_cond if scale else u_null)


def test_both_halves_of_guidance_see_the_same_point() -> None:
    net = Recorder()
    Guided(net, 2.0)(*question())
    ((*point, cond),) = net.calls
    for value in point:
        assert torch.equal(value[:3], value[3:])
    assert torch.equal(cond.mean[:3], question()[3].mean)
    assert not cond.mean[3:].any()


def test_guidance_may_differ_by_row() -> None:
    scales = torch.tensor([0.0, 1.0, 3.0])
    answer = Guided(toy_net, scales)(*question())
    for i, scale in enumerate(scales.tolist()):
        torch.testing.assert_close(answer[i], Guided(toy_net, scale)(*question())[i])
    sampler = build_sampler(ShortcutCfg(train_guidance=1.5))
    mixed = sampler.sample(toy_net, noise(), prompts(*MEANS), steps=2, guidance=scales)
    for i, scale in enumerate(scales.tolist()):
        alone = sampler.sample(toy_net, noise(), prompts(*MEANS), steps=2, guidance=scale)
        torch.testing.assert_close(mixed[i], alone[i])


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("rows", [[], [3, 1], [0, 1, 2, 3, 4]])
def test_row_guidance_leaves_the_other_rows_alone(rows: list[int], per_row: bool) -> None:
    u_cond, u_null = both_answers(5)
    net = Recorder()
    scale = torch.tensor([2.0, 0.5, 3.0, 1.5, 1.0], dtype=torch.float64) if per_row else 2.5
    answer = RowGuided(net, scale, torch.tensor(rows, dtype=torch.long))(*question(5))
    chosen = torch.zeros(5, dtype=torch.bool)
    chosen[rows] = True
    factor = column(torch.as_tensor(scale).expand(5))
    torch.testing.assert_close(answer, torch.where(column(chosen) > 0, u_null + factor * (u_cond - u_null), u_cond))
    assert [len(call[0]) for call in net.calls] == [5 + len(rows)]


# Which sampler drives which network


def test_every_config_of_the_command_line_has_a_sampler() -> None:
    assert [build_sampler(cfg_type()).cfg for cfg_type in SAMPLERS] == [cfg_type() for cfg_type in SAMPLERS]
    assert len({sampler.name for sampler in SAMPLERS.values()}) == len(SAMPLERS)
    for cfg_type in SAMPLERS:  # one answer only to the question which class a name means
        driving = [solver for solver in (*SAMPLERS.values(), *SOLVERS.values()) if issubclass(cfg_type, solver.drives)]
        assert len({solver.name for solver in driving}) == len(driving)
    with pytest.raises(TypeError, match="SamplerCfg has no sampler, but it must be one of DDIMCfg, DDPMCfg, FlowCfg"):
        build_sampler(SamplerCfg())


@pytest.mark.parametrize("cfg_type", SAMPLERS)
def test_a_network_is_driven_by_its_own_sampler_by_default(cfg_type: type[SamplerCfg]) -> None:
    cfg = cfg_type(steps=7)
    for sampler in (sampler_for(cfg), sampler_for(cfg, SAMPLERS[cfg_type].name)):
        assert type(sampler) is SAMPLERS[cfg_type]
        assert sampler.cfg == cfg
    assert sampler_for(cfg, steps=3).cfg.steps == 3


def test_a_flow_on_a_shortcut_network_keeps_the_guidance_of_its_training() -> None:
    trained = ShortcutCfg(train_guidance=2.0, grid=32, condition_drop=0.2)
    flow = sampler_for(trained, "flow", heun=True)
    assert type(flow) is FlowMatching
    assert flow.cfg == FlowCfg(heun=True, condition_drop=0.2)
    assert flow.scale(1.5, 0.0, 0.5) == 3.0
    shortcut = sampler_for(trained, steps=4)
    assert type(shortcut) is Shortcut
    assert (shortcut.scale(1.5, 0.0, 0.5), shortcut.scale(1.5, 0.0, 1 / 32)) == (1.5, 3.0)
    assert sampler_for(FlowCfg(), "flow").scale(1.5, 0.0, 0.5) == 1.5


def test_ddpm_and_ddim_share_a_network_and_its_chain() -> None:
    trained = DDPMCfg(timesteps=20, steps=20, schedule="linear", prediction="eps", min_snr=5.0)
    ddim = sampler_for(trained, "ddim", eta=0.3)
    assert ddim.cfg == DDIMCfg(timesteps=20, steps=20, schedule="linear", prediction="eps", min_snr=5.0, eta=0.3)
    assert sampler_for(ddim.cfg, "ddpm").cfg == trained


@pytest.mark.parametrize(
    ("trained", "names"),
    [
        (FlowCfg(), "flow ddpm ddim heun dpmpp"),
        (ShortcutCfg(), "flow ddpm ddim heun dpmpp shortcut restart"),
        (DDPMCfg(), "ddpm ddim dpmpp"),
        (DDIMCfg(), "ddpm ddim dpmpp"),
    ],
)
def test_which_samplers_drive_which_network(trained: SamplerCfg, names: str) -> None:
    assert solvers_of(trained).keys() == set(names.split())
    for name in names.split():
        solver = sampler_for(trained, name, steps=3)
        assert (solver.name, solver.cfg.steps) == (name, 3)
        assert type(solver.path) is type(build_sampler(trained).path)


@pytest.mark.parametrize(
    ("trained", "name", "sentence"),
    [
        (
            FlowCfg(),
            "shortcut",
            r"with flow cannot be driven by shortcut: it answers the instantaneous velocity .* "
            r"but shortcut asks for the average velocity over any step dt .*; use flow or .*dpmpp.*\.",
        ),
        (FlowCfg(), "restart", r"with flow cannot be driven by restart: .* asks for the average velocity over any"),
        (
            DDPMCfg(),
            "flow",
            r"with ddpm cannot be driven by flow: it answers v or eps on the variance-preserving path .* "
            r"but flow asks for the instantaneous velocity on the straight path .*; use ddpm or ddim or dpmpp\.",
        ),
        (DDPMCfg(), "heun", r"with ddpm cannot be driven by heun: .*; use ddpm or ddim or dpmpp\."),
        (DDIMCfg(), "shortcut", r"with ddim cannot be driven by shortcut: .*; use ddpm or ddim or dpmpp\."),
        (DDIMCfg(), "restart", r"with ddim cannot be driven by restart: .*; use ddpm or ddim or dpmpp\."),
    ],
)
def test_a_sampler_that_the_network_cannot_answer_is_refused_in_one_sentence(
    trained: SamplerCfg, name: str, sentence: str
) -> None:
    with pytest.raises(SamplerMismatch, match=sentence) as refusal:
        sampler_for(trained, name)
    assert "\n" not in str(refusal.value)


def test_unknown_names_and_settings_fixed_by_training_are_refused() -> None:
    with pytest.raises(ValueError, match="is 'euler', but it must be one of ddim, ddpm, dpmpp, flow, heun, imf, "):
        sampler_for(FlowCfg(), "euler")
    with pytest.raises(ValueError, match="schedule cannot be chosen for ddim after training; only eta, steps can"):
        sampler_for(DDPMCfg(), "ddim", schedule="linear")
    with pytest.raises(ValueError, match="eta cannot be chosen for ddpm after training; only steps can"):
        sampler_for(DDPMCfg(), eta=0.5)
    with pytest.raises(ValueError, match="eta cannot be chosen for dpmpp after training; only steps can"):
        sampler_for(FlowCfg(), "dpmpp", eta=0.5)
