"""Every objective for average velocities against the flow map of a Gaussian, and what they share."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.checks import ConfigError
from configs.diffusion_cfg import Stage2Cfg
from configs.sampler_cfg import (
    FlowCfg,
    FlowMapCfg,
    IMFCfg,
    LagrangianCfg,
    MeanFlowCfg,
    ShortcutCfg,
    SoFlowCfg,
    SplitCfg,
    TrajectoryCfg,
)
from samplers import SAMPLERS, When, build_sampler, sampler_for
from samplers import flow_map as fm
from samplers.base import START
from samplers.coupling import paired, plug_in_velocity
from samplers.derivative import difference
from samplers.flow import FlowMatching, VelocityFromData
from samplers.trajectory import Trajectory
from tests.gaussian import FlowMap, Prompt, column, prompts, toy_net

S = 0.6
FINE = 10**9  # no step counts as instantaneous
EXACT = {  # settings under which the exact flow map must reproduce itself, and to what
    "shortcut": (ShortcutCfg(continuous=True, grid=2**30), 1e-6),
    "split": (SplitCfg(grid=FINE), 1e-6),
    "meanflow": (MeanFlowCfg(probe=1e-6), 1e-5),
    "imf": (IMFCfg(probe=1e-6), 1e-5),
    "lagrangian": (LagrangianCfg(probe=1e-6), 1e-5),
    "soflow": (SoFlowCfg(first_part=1e-5, last_part=1e-5), 1e-8),
    "trajectory": (TrajectoryCfg(nodes=400), 2e-5),
}
objective = pytest.mark.parametrize("name", EXACT)
FLOW_MAPS = [cfg_type for cfg_type in SAMPLERS if issubclass(cfg_type, FlowMapCfg)]


def noise(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(cfg: FlowMapCfg, rows: int = 400, when: When = START) -> tuple[fm.FlowMap, fm.Jumps]:
    """Rows of the objective whose velocity is the exact one instead of a single mask's."""
    torch.manual_seed(0)
    sampler = build_sampler(cfg)
    assert isinstance(sampler, fm.FlowMap)
    mean = torch.linspace(-1, 1, rows, dtype=torch.float64)
    jumps, _ = sampler.jumps(column(mean) + S * noise(rows, 1), noise(rows), Prompt(mean), when)
    return sampler, replace(jumps, velocity=FlowMap(S).velocity(jumps.x_t, column(jumps.t), column(mean)))


def truth(jumps: fm.Jumps, guidance: float | Tensor = 1.0) -> Tensor:
    mean = column(jumps.cond.mean * guidance)
    t, dt = column(jumps.t), column(jumps.dt)
    return (FlowMap(S).transport(jumps.x_t, t, t + dt, mean) - jumps.x_t) / dt


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def test_every_objective_for_average_velocities_is_tried_here() -> None:
    assert {SAMPLERS[cfg_type].name for cfg_type in FLOW_MAPS} == set(EXACT)


@objective
def test_the_exact_flow_map_is_the_fixed_point(name: str) -> None:
    cfg, atol = EXACT[name]
    sampler, jumps = drawn(cfg)
    close(sampler.average_velocity(jumps, FlowMap(S), When()), truth(jumps), atol)


@objective
def test_a_wrong_network_is_no_fixed_point(name: str) -> None:
    sampler, jumps = drawn(EXACT[name][0])

    def wrong(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:  # right at dt = 0 only
        return FlowMap(S)(x, t, dt, cond) + column(dt)

    answer = wrong(jumps.x_t, jumps.t, jumps.dt, jumps.cond)
    target = sampler.average_velocity(jumps, wrong, When())
    assert ((answer - target).abs()[jumps.dt > 0.3] > 1e-6).all()


@objective
def test_long_steps_inherit_the_guidance_of_the_velocity(name: str) -> None:
    cfg, atol = EXACT[name]
    sampler, jumps = drawn(replace(cfg, train_guidance=2.5))
    target = sampler.average_velocity(jumps, FlowMap(S, held=2.5), When())
    close(target, truth(jumps, 2.5), 3 * atol)


@objective
def test_guidance_as_an_input_is_held_row_by_row(name: str) -> None:
    cfg, atol = EXACT[name]
    sampler, jumps = drawn(replace(cfg, train_guidance=2.0, most_guidance=4.0))
    scale = jumps.guidance
    assert isinstance(scale, Tensor)
    assert 1 <= scale.min() < 1.1
    assert 3.9 < scale.max() <= 4
    assert torch.equal(jumps.cond.guidance, scale)
    close(sampler.average_velocity(jumps, FlowMap(S), When()), truth(jumps, scale), 4 * atol)


@pytest.mark.parametrize("name", ["shortcut", "soflow"])
def test_flow_rows_are_asked_without_guidance_where_it_is_an_input(name: str) -> None:
    sampler = build_sampler(replace(EXACT[name][0], train_guidance=2.0, most_guidance=4.0, condition_drop=0.0))
    goal = sampler.targets(noise(64), Prompt(torch.ones(64, dtype=torch.float64)), FlowMap(S))
    assert (goal.cond.guidance[goal.parts["flow"]] == 1).all()
    assert (goal.cond.guidance[goal.parts["consistency"]] != 1).all()
    assert len(goal.cond.mean) == len(goal.x)


@pytest.mark.parametrize("cfg_type", [MeanFlowCfg, IMFCfg, LagrangianCfg])
def test_probing_twice_as_close_divides_the_bias_by_four(cfg_type: Any) -> None:
    errors = []
    for probe in (0.04, 0.02):
        sampler, jumps = drawn(cfg_type(probe=probe, one_step_atom=0.0))
        inner = (jumps.t > 0.04) & (jumps.dt > 0.08) & (jumps.t + jumps.dt < 0.96)  # probes on both sides
        error = sampler.average_velocity(jumps, FlowMap(S), When()) - truth(jumps)
        errors.append(error[inner].square().mean().sqrt())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_probes_are_asked_without_rounding_to_tf32() -> None:
    seen: list[bool] = []

    def at(s: Tensor) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return column(s)

    before, ones = torch.backends.cudnn.allow_tf32, torch.ones(3, dtype=torch.float64)
    close(difference(at, 0.01, ones, ones, torch.device("cpu")), column(ones), 1e-9)
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32 == before


def test_halving_soflows_first_part_halves_the_bias_that_its_loss_divides_by_it() -> None:
    errors = []
    for part in (0.02, 0.01):
        sampler, jumps = drawn(SoFlowCfg(first_part=part, last_part=part))
        bias = (sampler.average_velocity(jumps, FlowMap(S), When()) - truth(jumps)) * sampler.gain(jumps, When())
        errors.append(bias.square().mean().sqrt())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)


def test_soflow_takes_its_share_of_the_datas_velocity() -> None:
    sampler, jumps = drawn(SoFlowCfg(first_part=0.1, last_part=0.1, data_velocity=0.25))
    moved = replace(jumps, velocity=jumps.velocity + 1)

    def still(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        return torch.zeros_like(x)

    difference = sampler.average_velocity(moved, still, When()) - sampler.average_velocity(jumps, still, When())
    close(difference, torch.full_like(difference, 0.1 * 0.25), 1e-9)


@pytest.mark.parametrize(("cfg", "along_the_data"), [(MeanFlowCfg(probe=1e-3), True), (IMFCfg(probe=1e-3), False)])
def test_only_meanflow_differentiates_along_the_datas_velocity(cfg: FlowMapCfg, along_the_data: bool) -> None:
    sampler, jumps = drawn(cfg)
    moved = replace(jumps, velocity=jumps.velocity + 1)
    change = sampler.average_velocity(moved, FlowMap(S), When()) - sampler.average_velocity(jumps, FlowMap(S), When())
    assert ((change - 1).abs().max() > 0.01) == along_the_data


@pytest.mark.parametrize("data", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_first_parts_velocity_has_the_guided_mean_whatever_the_datas_share(data: float, guidance: float) -> None:
    sampler, jumps = drawn(SoFlowCfg(train_guidance=guidance))
    mean = column(guidance * jumps.cond.mean)
    expected = FlowMap(S).velocity(jumps.x_t, column(jumps.t), mean)
    close(sampler.guided_velocity(FlowMap(S), jumps, data), expected, 1e-9)
    moved = replace(jumps, velocity=jumps.velocity + 1)
    close(sampler.guided_velocity(FlowMap(S), moved, data), expected + data, 1e-9)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_soflows_first_part_shrinks_and_its_loss_divides_it_out(progress: float) -> None:
    when = When(0, progress)
    cfg = SoFlowCfg(first_part=0.1, last_part=0.001, loss_power=0.5)
    sampler = build_sampler(cfg)
    share = 0.1 * 0.01**progress
    x1, cond = noise(64), Prompt(torch.linspace(-1, 1, 64, dtype=torch.float64))
    goal = sampler.targets(x1, cond, toy_net, when)
    rows = goal.parts["consistency"]
    assert goal.gain is not None
    torch.testing.assert_close(goal.gain[rows], torch.full_like(goal.gain[rows], 1 / share))
    assert (goal.gain[goal.parts["flow"]] == 1).all()
    assert len(set(goal.weight[rows].tolist())) == 1
    # far from the target, weight * error = (error / share) / (error / share^2)^(1/2) = error^(1/2), whatever the share
    error = torch.tensor(1e6, dtype=torch.float64)
    value = goal.weight[rows][0] * error / (error / share**2 + 0.01) ** 0.5
    torch.testing.assert_close(value, error.sqrt() * 0.25 * 64 / (rows.stop - rows.start), rtol=1e-6, atol=0)


def test_alpha_flows_first_part_falls_from_the_whole_step_as_a_sigmoid() -> None:
    shares = []
    for progress in (0.0, 0.5, 1.0):
        sampler, jumps = drawn(SoFlowCfg(schedule="sigmoid", last_part=0.005), when=When(0, progress))
        seen: list[Tensor] = []

        def teacher(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt, seen: list[Tensor] = seen) -> Tensor:
            seen.append(dt)
            return torch.zeros_like(x)

        sampler.average_velocity(jumps, teacher, When(0, progress))
        shares.append(1 - (seen[-1] / jumps.dt).mean().item())
    assert shares == pytest.approx([1, 0.5, 0.005], abs=1e-4)


# Lengths of steps


@pytest.mark.parametrize("cfg_type", FLOW_MAPS)
@pytest.mark.parametrize("jumps", ["uniform", "log", "two-times"])
def test_steps_stay_on_the_path_and_hold_the_one_step_atom(cfg_type: Any, jumps: str) -> None:
    sampler = build_sampler(replace(cfg_type(jumps=jumps, one_step_atom=0.2)))
    if isinstance(sampler.cfg, ShortcutCfg):
        sampler = build_sampler(replace(sampler.cfg, continuous=True))
    t, dt, parts = sampler.lengths(5000, When())
    assert (t >= 0).all()
    assert (dt > 0).all()
    assert (t + dt <= 1).all()
    assert parts["consistency_d1"] == slice(0, 1000)
    assert ((t == 0) & (dt == 1)).sum() == 1000


def test_two_times_have_the_law_of_the_flow_rows_times() -> None:
    torch.manual_seed(0)
    cfg = MeanFlowCfg(jumps="two-times", one_step_atom=0.0, time_mean=-0.4, time_std=0.8)
    t, dt, _ = build_sampler(cfg).lengths(20_000, When())
    ends = torch.cat([t, t + dt]).logit()
    assert ends.mean().item() == pytest.approx(-0.4, abs=5 * 0.8 / 40_000**0.5)
    assert ends.std().item() == pytest.approx(0.8, abs=5 * 0.8 / 80_000**0.5)


def test_log_uniform_steps_are_as_likely_in_every_octave() -> None:
    torch.manual_seed(0)
    _, dt, _ = build_sampler(SplitCfg(jumps="log", one_step_atom=0.0)).lengths(12_000, When())
    counts = torch.histc(-dt.log2(), 6, 0, 6)
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()


@pytest.mark.parametrize(("progress", "longest"), [(0.0, 1 / 64), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)])
def test_the_curriculum_opens_longer_steps_as_training_goes_on(progress: float, longest: float) -> None:
    torch.manual_seed(0)
    sampler = build_sampler(SplitCfg(jumps="uniform", curriculum=0.5))
    t, dt, parts = sampler.lengths(4000, When(0, progress))
    assert dt.max().item() == pytest.approx(longest)
    assert (t + dt <= 1).all()
    assert ("consistency_d1" in parts) == (longest == 1)  # it is the name of the whole way


@pytest.mark.parametrize(("progress", "levels"), [(0.0, 1), (0.1, 1), (0.25, 3), (0.5, 5), (1.0, 5)])
def test_the_curriculum_opens_the_ladder_from_its_shortest_rung(progress: float, levels: int) -> None:
    _, dt, parts = build_sampler(ShortcutCfg(grid=32, curriculum=0.5)).lengths(64, When(0, progress))
    assert sorted(set(dt.tolist())) == [2.0**-j for j in range(4, 4 - levels, -1)]
    assert list(parts) == ["consistency", *(f"consistency_d{2**j}" for j in range(5 - levels, 5))]


def test_the_ladders_bias_moves_its_share_of_rows_to_the_one_step_query() -> None:
    torch.manual_seed(0)
    rows = 20_000
    t, dt, _ = build_sampler(ShortcutCfg(grid=32, ladder_bias=0.4)).lengths(rows, When())
    expected = 0.4 + 0.6 / 5
    assert (dt == 1).double().mean().item() == pytest.approx(expected, abs=5 * (expected / rows) ** 0.5)
    assert not t[dt == 1].any()


@pytest.mark.parametrize("name", EXACT)
def test_self_consistency_begins_where_it_is_told_to(name: str) -> None:
    sampler = build_sampler(replace(EXACT[name][0], begin=0.5))
    x1, cond = noise(16), Prompt(torch.ones(16, dtype=torch.float64))
    for progress, parts in ((0.0, {"flow"}), (0.49, {"flow"}), (0.5, {"flow", "consistency"})):
        goal = sampler.targets(x1, cond, FlowMap(S), When(0, progress))
        assert {"flow", "consistency"} & goal.parts.keys() == parts
        assert len(goal.x) == 16


@pytest.mark.parametrize("step", [0, 1])
def test_flow_rows_can_have_a_power_of_their_own(step: int) -> None:
    sampler = build_sampler(ShortcutCfg(loss_power=0.75, flow_power=0.0, share=0.25))
    x1, cond = noise(32), Prompt(torch.linspace(-1, 1, 32, dtype=torch.float64))
    torch.manual_seed(0)
    loss, _ = sampler.loss(toy_net, x1, cond, teacher=toy_net, when=When(step))
    torch.manual_seed(0)
    goal = sampler.targets(x1, cond, toy_net, When(step))
    error = (toy_net(goal.x, goal.t, goal.dt, goal.cond) - goal.y).square().mean((1, 2, 3))
    adaptive = torch.zeros(len(error), dtype=torch.bool)
    adaptive[goal.parts.get("consistency", slice(0, 0))] = True
    expected = goal.weight * torch.where(adaptive, error / (error + 0.01) ** 0.75, error)
    torch.testing.assert_close(loss, expected.mean())


@pytest.mark.parametrize("name", EXACT)
def test_rows_that_end_on_a_mask_are_looked_at_there(name: str) -> None:
    x1, cond = noise(64), Prompt(torch.linspace(-1, 1, 64, dtype=torch.float64))
    losses, met = [], {}
    for weight in (0.0, 3.0):
        sampler = build_sampler(replace(EXACT[name][0], perceptual_weight=weight, one_step_atom=0.5, condition_drop=0))

        def perceptual(answer: Tensor, wanted: Tensor) -> Tensor:
            met["answer"], met["wanted"] = answer, wanted
            return torch.arange(len(answer), dtype=torch.float64)

        torch.manual_seed(0)
        loss, parts = sampler.loss(toy_net, x1, cond, teacher=FlowMap(S), perceptual=perceptual)
        losses.append(loss)
    torch.manual_seed(0)
    goal = sampler.targets(x1, cond, FlowMap(S))
    arrive = (goal.t + goal.dt > 1 - 1e-6) & (goal.dt > 0)
    assert 0 < arrive.sum() < 64
    assert torch.equal(goal.ends, arrive.nonzero().flatten())
    rows = arrive.nonzero().flatten()
    step = column(goal.dt[rows])
    close(met["wanted"], goal.x[rows] + step * goal.y[rows], 1e-12)
    close(met["answer"], goal.x[rows] + step * toy_net(goal.x, goal.t, goal.dt, goal.cond)[rows], 1e-12)
    often = torch.ones(len(goal.x)) if goal.counts is None else goal.counts
    assert often.sum() == 64
    error = often[rows] * torch.arange(len(rows), dtype=torch.float64)
    close(losses[1] - losses[0], 3.0 * (goal.weight[rows] * error).sum() / 64, 1e-9)
    close(parts["perceptual"], error.sum() / often[rows].sum(), 1e-12)


def test_a_batch_in_which_no_row_ends_on_a_mask_has_no_perceptual_error() -> None:
    sampler = build_sampler(SplitCfg(perceptual_weight=3.0, one_step_atom=0.0, curriculum=0.5))
    loss, parts = sampler.loss(
        toy_net, noise(8), Prompt(torch.ones(8)), teacher=FlowMap(S), perceptual=lambda x, wanted: x.sum((1, 2, 3))
    )
    assert loss.isfinite()
    assert parts["perceptual"] == 0


# Whole paths


def trajectory(**changes: Any) -> Trajectory:
    sampler = build_sampler(TrajectoryCfg(condition_drop=0.0, share=0.25, every=2, **changes))
    assert isinstance(sampler, Trajectory)
    return sampler


GUIDANCES = [{}, {"train_guidance": 2.5}, {"train_guidance": 2.0, "most_guidance": 4.0}]


@pytest.mark.parametrize(("way", "atol"), [({"nodes": 200, "per_path": 4}, 2e-3), ({"jumps_from": 0.0}, 1e-6)])
@pytest.mark.parametrize("changes", GUIDANCES)
def test_any_two_points_of_a_path_give_their_average_velocity(
    changes: dict[str, float], way: dict[str, Any], atol: float
) -> None:
    """With prompts of many means, so that a row with another path's prompt would fail."""
    torch.manual_seed(0)
    mean = torch.linspace(-1, 1, 64, dtype=torch.float64)
    held = 1.0 if "most_guidance" in changes else changes.get("train_guidance", 1.0)
    teacher = FlowMap(S, held=held)
    goal = trajectory(**way, **changes).targets(noise(64), Prompt(mean), teacher)
    rows = goal.parts["consistency"]
    assert len(goal.x[rows]) == 32
    jumps = fm.Jumps(goal.x[rows], goal.t[rows], goal.dt[rows], goal.y[rows], goal.cond[rows], 1.0)
    guidance = jumps.cond.guidance if "most_guidance" in changes else changes.get("train_guidance", 1.0)
    close(goal.y[rows], truth(jumps, guidance), atol)
    assert ((jumps.t == 0) & (jumps.dt == 1)).any()  # the one-step query
    assert len(set(jumps.cond.mean.tolist())) == 32 // way.get("per_path", 2)  # of the 32 rows, so many share a path
    assert torch.equal(goal.cond.mean[goal.parts["flow"]], mean[32:])


def test_half_the_steps_along_a_path_quarter_the_error() -> None:
    errors = []
    for nodes in (16, 32, 64):
        sampler = trajectory(nodes=nodes)
        _, jumps = drawn(sampler.cfg)
        jumps = replace(jumps, t=torch.zeros_like(jumps.t), dt=torch.ones_like(jumps.dt), x_t=noise(400))
        errors.append((sampler.average_velocity(jumps, FlowMap(S), When()) - truth(jumps)).abs().max().item())
    assert 3.4 < errors[0] / errors[1] < 4.6
    assert 3.4 < errors[1] / errors[2] < 4.6


def test_half_the_steps_of_uneven_lengths_quarter_the_error_too() -> None:
    errors = []
    for nodes in (16, 32, 64):
        sampler = trajectory(nodes=nodes, jitter=0.5)
        _, jumps = drawn(sampler.cfg)
        whole = replace(jumps, t=torch.zeros_like(jumps.t), dt=torch.ones_like(jumps.dt), x_t=noise(400))
        path = sampler.integrate(whole, sampler.node_times(400, nodes), FlowMap(S), When())
        errors.append((path[-1] - path[0] - truth(whole)).square().mean().sqrt().item())
    assert 3.3 < errors[0] / errors[1] < 4.7
    assert 3.3 < errors[1] / errors[2] < 4.7


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_inner_nodes_move_by_up_to_half_a_step(jitter: float) -> None:
    torch.manual_seed(0)
    times = trajectory(jitter=jitter).node_times(500, 8)
    even = torch.arange(9, dtype=torch.float64)[:, None] / 8
    assert torch.equal(times[[0, -1]], even[[0, -1]].expand(2, 500))
    assert (times.diff(dim=0) > 0).all()
    moved = (times - even).abs().max().item()
    assert moved == pytest.approx(jitter / 16, abs=0.002)


def test_a_path_is_shared_by_its_rows() -> None:
    sizes = []

    def counted(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        sizes.append(len(x))
        assert not dt.any()  # velocities alone are asked
        return FlowMap(S)(x, t, dt, cond)

    sampler = trajectory(nodes=8, per_path=4, train_guidance=2.0, jumps_from=0.8)
    sampler.targets(noise(64), Prompt(torch.ones(64)), counted, When(progress=0.79))
    assert sizes == [16] * 8  # 32 rows, 8 paths, with and without the prompt


@pytest.mark.parametrize(
    "changes",
    [{}, {"curriculum": 0.8}, {"train_guidance": 2.0, "most_guidance": 4.0}, {"jumps_from": 0.0, "jump_per_path": 8}],
)
@pytest.mark.parametrize(("atom", "ones"), [(0.0, 0), (0.09375, 3), (0.3125, 10), (0.5, 16)])
def test_a_path_asked_twice_for_its_longest_step_is_one_row_that_counts_twice(
    atom: float, ones: int, changes: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 32 rows on four paths: loss and parts are those of rows that are spelled out."""
    how: dict[str, Any] = {"loss_power": 1.0, "flow_power": 0.5, "perceptual_weight": 2.0, **changes}
    sampler = trajectory(nodes=6, per_path=8, one_step_atom=atom, **how)
    x1, cond, when = noise(64), Prompt(torch.linspace(-1, 1, 64, dtype=torch.float64)), When(progress=0.4)
    torch.manual_seed(0)
    goal = sampler.targets(x1, cond, FlowMap(S), when)
    counts, cons = goal.counts, goal.parts["consistency"]
    assert counts is not None
    often = counts.long()
    assert often[cons].sum() == 32
    assert (often[goal.parts["flow"]] == 1).all()
    assert len(often[goal.parts["flow"]]) == 32
    assert len(often[cons]) == 32 - max(0, ones - 4)
    asked = min(ones, 4)  # one row a path
    assert goal.parts.get("consistency_d1") == (slice(0, asked) if ones and "curriculum" not in changes else None)
    assert often[:asked].tolist() == {0: [], 3: [1, 1, 1], 10: [3, 3, 2, 2], 16: [4, 4, 4, 4]}[ones]
    assert not goal.t[:asked].any()
    assert ((goal.dt[:asked] - sampler.reach(when)).abs() <= 0.5 / 4).all()  # moved to a node
    means = torch.linspace(-1, 1, 64, dtype=torch.float64)[:asked]
    assert torch.equal(goal.cond.mean[:asked], means)

    every = torch.arange(len(often)).repeat_interleave(often)
    assert goal.ends is not None
    one_by_one = replace(
        goal, counts=None, cond=goal.cond[every], ends=torch.isin(every, goal.ends).nonzero().flatten(),
        parts={name: slice(int(often[: rows.start].sum()), int(often[: rows.stop].sum()))
               for name, rows in goal.parts.items()},
        **{name: getattr(goal, name)[every] for name in ("x", "t", "dt", "y", "weight", "power")},
    )  # fmt: skip
    results = []
    for what in (goal, one_by_one):
        monkeypatch.setattr(sampler, "targets", lambda *_, what=what: what)
        results.append(sampler.loss(
            toy_net, x1, cond, teacher=FlowMap(S), when=when, perceptual=lambda x, y: (x - y).square().sum((1, 2, 3))
        ))
    (loss, parts), (expected, expected_parts) = results
    close(loss, expected, 1e-12)
    assert parts.keys() == expected_parts.keys() >= {"consistency", "flow", "perceptual"}
    for name, value in parts.items():
        close(value, expected_parts[name], 1e-12)


def test_a_large_batch_leaves_as_many_rows_each_time() -> None:
    """Each size would be recorded anew where a training replays its calls."""
    sampler = build_sampler(TrajectoryCfg(share=0.44, every=1, one_step_atom=0.5))
    x1, cond = noise(1024), Prompt(torch.ones(1024))
    assert {len(sampler.targets(x1, cond, FlowMap(S)).x) for _ in range(20)} == {1024 - 226 + 113}


@pytest.mark.parametrize(("jumps_from", "progress"), [(0.0, 0.0), (0.8, 0.8)])
def test_a_path_of_jumps_asks_for_each_once_from_node_to_node(jumps_from: float, progress: float) -> None:
    asked = []

    def counted(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        asked.append((t, dt))
        return FlowMap(S)(x, t, dt, cond)

    sampler = trajectory(jumps_from=jumps_from, jump_nodes=3, jump_per_path=4, train_guidance=2.0)
    sampler.targets(noise(64), Prompt(torch.ones(64)), counted, When(progress=progress))
    assert [len(t) for t, _ in asked] == [8] * 3  # 32 rows, 8 paths; guidance is inside the jumps
    for (t, dt), (after, _) in itertools.pairwise(asked):
        close(t + dt, after, 1e-12)
    first, last = asked[0], asked[-1]
    assert not first[0].any()
    close(last[0] + last[1], torch.ones_like(last[0]), 1e-12)


@pytest.mark.parametrize("guidance", [0.5, 1.0, 1.5])
def test_jumps_may_be_asked_with_other_guidance_than_they_hold(guidance: float) -> None:
    rows: list[int] = []

    def counted(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        rows.append(len(x))
        return FlowMap(S, held=2.0)(x, t, dt, cond)

    sampler = trajectory(jumps_from=0.0, train_guidance=2.0, jump_guidance=guidance)
    goal = sampler.targets(noise(64), Prompt(torch.linspace(-1, 1, 64, dtype=torch.float64)), counted)
    part = goal.parts["consistency"]
    jumps = fm.Jumps(goal.x[part], goal.t[part], goal.dt[part], goal.y[part], goal.cond[part], 1.0)
    close(goal.y[part], truth(jumps, 2.0 * guidance), 1e-6)
    assert rows == [16 if guidance == 1 else 32] * 4


# Noise and data


def test_pairing_finds_the_assignment_of_least_squared_distance() -> None:
    eps, x1 = noise(6, 1), noise(6, 2)

    def cost(order: tuple[int, ...]) -> float:
        return (eps[list(order)] - x1).square().sum().item()

    best = min(itertools.permutations(range(6)), key=cost)
    assert torch.equal(paired(eps, x1), eps[list(best)])


def test_pairing_within_prompts_never_crosses_them() -> None:
    eps, x1 = noise(8, 1), noise(8, 2)
    mean = torch.tensor([0.0, 1, 0, 1, 0, 1, 2, 0])
    same = Prompt(mean).same()
    got = paired(eps, x1, same)
    for prompt in (0, 1, 2):
        rows = mean == prompt
        assert torch.equal(got[rows], paired(eps[rows], x1[rows]))


@pytest.mark.parametrize("pairing", ["prompt", "batch"])
@pytest.mark.parametrize("cfg_type", [FlowCfg, ShortcutCfg, SoFlowCfg])
def test_paired_training_uses_each_noise_once(cfg_type: Any, pairing: str) -> None:
    sampler = build_sampler(cfg_type(pairing=pairing))
    x1 = noise(32)
    torch.manual_seed(3)
    goal = sampler.targets(x1, Prompt(torch.ones(32)), FlowMap(S))
    flow = goal.parts["flow"]
    start = goal.x[flow] - column(goal.t[flow]) * goal.y[flow]  # x_t - t v is the noise
    torch.manual_seed(3)
    torch.rand(32)  # the draw of dropped prompts
    drawn_noise = torch.randn_like(x1)
    distance = torch.cdist(start.flatten(1), drawn_noise.flatten(1))
    assert distance.min(1).values.max() < 1e-6
    assert len(set(distance.argmin(1).tolist())) == len(start)


@pytest.mark.parametrize("pairing", ["prompt", "batch"])
def test_training_pairs_noise_and_masks_as_it_is_told_to(pairing: str) -> None:
    sampler = build_sampler(FlowCfg(pairing=pairing))
    assert isinstance(sampler, FlowMatching)
    x1, cond = noise(32), Prompt(torch.arange(32.0) % 2)
    torch.manual_seed(3)
    got = sampler.noise_for(x1, cond)
    torch.manual_seed(3)
    unpaired = torch.randn_like(x1)
    crossing, inside = paired(unpaired, x1), paired(unpaired, x1, cond.same())
    assert not torch.equal(crossing, inside)
    assert not torch.equal(inside, unpaired)
    assert torch.equal(got, inside if pairing == "prompt" else crossing)


def test_plug_in_velocity_is_the_posterior_mean_over_the_batch() -> None:
    x1, eps, t = noise(5, 1), noise(5, 2), torch.tensor([0.0, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)
    x_t = torch.lerp(eps, x1, column(t))
    same = Prompt(torch.tensor([0.0, 0, 1, 1, 0])).same()
    got = plug_in_velocity(x_t, t, x1, same)
    for i in range(5):
        others = [j for j in range(5) if same[i, j]]
        guesses = torch.stack([(x_t[i] - t[i] * x1[j]) / (1 - t[i]) for j in others])  # their noises
        weight = (-guesses.square().flatten(1).sum(1) / 2).softmax(0)
        expected = (weight.view(-1, 1, 1, 1) * (x1[others] - guesses)).sum(0)
        torch.testing.assert_close(got[i], expected)


def test_plug_in_changes_its_share_of_the_flow_rows_only() -> None:
    x1 = noise(2000)
    for share in (0.0, 0.4, 1.0):
        torch.manual_seed(0)
        goal = FlowMatching(FlowCfg(plug_in=share)).targets(x1, Prompt(torch.ones(2000)), toy_net)
        own = (goal.x + (1 - column(goal.t)) * goal.y - x1).abs().flatten(1).max(1).values < 1e-9  # leads to its mask
        assert own.double().mean().item() == pytest.approx(1 - share, abs=0.06)


def test_plugged_in_velocities_are_those_of_masks_of_the_same_prompt() -> None:
    x1, cond = noise(200), Prompt(torch.arange(200, dtype=torch.float64) % 2)
    goal = FlowMatching(FlowCfg(plug_in=1.0, condition_drop=0.0)).targets(x1, cond, toy_net)
    close(goal.y, plug_in_velocity(goal.x, goal.t, x1, cond.same()), 1e-9)
    everyone = torch.ones_like(cond.same())
    assert (goal.y - plug_in_velocity(goal.x, goal.t, x1, everyone)).abs().max() > 0.1


# A network that answers the data


@pytest.mark.parametrize("cfg_type", [FlowCfg, ShortcutCfg, SoFlowCfg, MeanFlowCfg, SplitCfg])
def test_reading_data_as_velocity_changes_nothing_for_the_exact_network(cfg_type: Any) -> None:
    def answers_data(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        return x + (1 - column(t)) * FlowMap(S)(x, t, dt, cond)

    start, cond = noise(3), prompts(0.7, -1.2, 0.0)
    reads, plain = build_sampler(cfg_type(prediction="x")), build_sampler(cfg_type())
    torch.testing.assert_close(
        reads.sample(answers_data, start, cond, steps=5), plain.sample(FlowMap(S), start, cond, steps=5)
    )
    x1 = column(torch.linspace(-1, 1, 64, dtype=torch.float64)) + S * noise(64)
    prompt = Prompt(torch.linspace(-1, 1, 64, dtype=torch.float64))
    goals = []
    for sampler, net in ((reads, answers_data), (plain, FlowMap(S))):
        torch.manual_seed(0)
        goals.append(sampler.targets(x1, prompt, net))
    close(goals[0].y, goals[1].y, 1e-6)
    cap = ((1 - goals[0].t) / (1 - goals[0].t).clamp(min=0.05)).clamp(max=1)
    torch.testing.assert_close(goals[0].weight, goals[1].weight * cap**2)
    assert goals[0].gain is not None
    close(goals[0].gain, cap if goals[1].gain is None else cap * goals[1].gain, 1e-12)
    assert isinstance(reads.reading(answers_data), VelocityFromData)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LagrangianCfg(prediction="x"), r"sampler\.prediction is 'x'"),
        (lambda: Stage2Cfg(sampler=ShortcutCfg(most_guidance=3.0)), r"backbone\.guidance_input is False"),
        (lambda: Stage2Cfg(sampler=IMFCfg()), r"backbone\.fastest_rate is 1000\.0"),
        (lambda: SoFlowCfg(last_part=0.5), r"sampler\.last_part is 0\.5, but it must be above 0 and at most"),
        (lambda: ShortcutCfg(most_guidance=1.5, train_guidance=2.0), r"sampler\.most_guidance is 1\.5"),
        (lambda: MeanFlowCfg(probe=0.0), r"sampler\.probe is 0\.0"),
        (lambda: TrajectoryCfg(jump_guidance=0.0), r"sampler\.jump_guidance is 0\.0"),
        (
            lambda: TrajectoryCfg(jump_guidance=0.9, jumps_from=0.8, most_guidance=4.0),
            r"sampler\.jump_guidance is 0\.9, but it must be 1 where guidance is an input",
        ),
        (lambda: TrajectoryCfg(jump_guidance=0.9), r"must be 1 where no path is taken by jumps"),
        (lambda: SplitCfg(heun=True), r"sampler\.heun is True"),
        (lambda: FlowCfg(pairing="all"), r"sampler\.pairing is 'all'"),  # type: ignore[arg-type]  # the point
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


@pytest.mark.parametrize("name", ["shortcut", "soflow"])
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1.7, 3.0])
def test_guidance_as_an_input_samples_what_guidance_by_two_calls_would(name: str, guidance: float) -> None:
    sampler = build_sampler(replace(EXACT[name][0], train_guidance=2.0, most_guidance=4.0))
    calls: list[int] = []

    def net(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        calls.append(len(x))
        return FlowMap(S)(x, t, dt, cond)

    start, cond = noise(3), prompts(0.7, -1.2, 0.0)
    sample = sampler.sample(net, start, cond, steps=4, guidance=guidance)
    close(sample, 2.0 * guidance * column(cond.mean) + S * start, 1e-9)
    assert calls == [3 if guidance in (0.0, 0.5, 1.0, 1.7) else 6] * 4  # 0 asks without prompts; 6 is beyond the range


@pytest.mark.parametrize("guidance", [0.5, 1.0, 1.7])
def test_restart_asks_for_the_guidance_that_is_an_input(guidance: float) -> None:
    sampler = sampler_for(ShortcutCfg(train_guidance=2.0, most_guidance=4.0), "restart")
    start, cond = noise(3), prompts(0.7, -1.2, 0.0)
    sample = sampler.sample(FlowMap(S), start, cond, steps=1, guidance=guidance)
    close(sample, 2.0 * guidance * column(cond.mean) + S * start, 1e-9)


def test_guidance_as_an_input_may_differ_by_row() -> None:
    sampler = build_sampler(ShortcutCfg(train_guidance=2.0, most_guidance=4.0))
    start, cond = noise(3), prompts(0.7, -1.2, 0.3)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    sample = sampler.sample(FlowMap(S), start, cond, steps=2, guidance=scale)
    close(sample, 2.0 * column(scale * cond.mean) + S * start, 1e-9)
