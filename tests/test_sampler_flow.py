"""Flow and shortcut samplers against the closed forms of a Gaussian."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from configs.checks import ConfigError
from configs.sampler_cfg import FlowCfg, ShortcutCfg
from samplers import Targets, When, build_sampler
from samplers.flow import FlowMatching
from samplers.shortcut import Shortcut
from tests.gaussian import FlowMap, Prompt, column, flow_floor, ladder_net, prompts, toy_net

MEANS = (0.7, -1.2, 0.0)
S = 0.6
LADDER = ShortcutCfg(grid=32)
CONTINUUM = ShortcutCfg(grid=32, continuous=True)


def noise(rows: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(rows: int, seed: int = 0) -> tuple[Tensor, Prompt]:
    mean = torch.linspace(-1, 1, rows, dtype=torch.float64)
    return column(mean) + S * noise(rows, seed), Prompt(mean)


def drawn(cfg: ShortcutCfg, rows: int, teacher: FlowMap, seed: int = 0) -> Targets:
    torch.manual_seed(seed)
    return Shortcut(cfg).targets(*data(rows, seed), teacher)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# Sampling


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 128])
def test_shortcut_steps_of_any_number_carry_noise_along_the_exact_flow(steps: int) -> None:
    sample = Shortcut(ShortcutCfg(grid=128)).sample(ladder_net(S, 128), noise(), prompts(*MEANS), steps=steps)
    close(sample, column(prompts(*MEANS).mean) + S * noise())


@given(st.lists(st.integers(2, 10), min_size=1, max_size=8))
@settings(deadline=None, max_examples=30)
def test_shortcut_irregular_steps_carry_noise_along_the_exact_flow(parts: list[int]) -> None:
    lengths = torch.tensor(parts, dtype=torch.float64) / sum(parts)  # each at least 2/80, above 1/128
    times = [0.0, *lengths.cumsum(0).tolist()[:-1], 1.0]
    sample = Shortcut(ShortcutCfg(grid=128)).sample(ladder_net(S, 128), noise(), prompts(*MEANS), times=times)
    close(sample, column(prompts(*MEANS).mean) + S * noise())


@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(heun: bool, order: int) -> None:
    sampler = FlowMatching(FlowCfg(heun=heun))
    truth = column(prompts(*MEANS).mean) + S * noise()
    coarse, fine = (sampler.sample(FlowMap(S), noise(), prompts(*MEANS), steps=n) - truth for n in (128, 256))
    torch.testing.assert_close(coarse / fine, torch.full_like(fine, 2.0**order), rtol=0.05, atol=0)


def test_only_steps_longer_than_the_grid_are_asked_as_steps() -> None:
    asked: list[float] = []

    def net(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        asked.append(dt.item())
        return torch.zeros_like(x)

    Shortcut(LADDER).sample(net, noise(1), prompts(0), times=[0, 0.01, 0.01 + 1 / 32, 0.5, 1])
    assert asked == pytest.approx([0, 0, 0.5 - 0.01 - 1 / 32, 0.5])
    asked.clear()
    FlowMatching(FlowCfg()).sample(net, noise(1), prompts(0), times=[0, 0.01, 0.5, 1])
    assert asked == [0, 0, 0]


# The flow objective


@pytest.mark.parametrize("s", [0.3, 1.0, 2.5])
def test_flow_loss_of_the_exact_velocity_is_its_floor(s: float) -> None:
    rows, pixels = 20_000, 4
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    variance = s**2 / FlowMap(s).sigma(t) ** 2  # Var(v | x_t)

    def power(k: int) -> float:  # moments over uniform times
        return torch.trapezoid(variance**k, t).item()

    assert power(1) == pytest.approx(flow_floor(s), rel=1e-6)
    torch.manual_seed(0)
    x1 = s * torch.randn(rows, 1, 2, 2, dtype=torch.float64)
    sampler = build_sampler(FlowCfg(time_std=0))
    loss, parts = sampler.loss(FlowMap(s), x1, Prompt(torch.zeros(rows)), teacher=toy_net)
    # a row's error is Var(v | x_t) * chi2(pixels) / pixels, whose second moment is (1 + 2 / pixels) power(2)
    deviation = math.sqrt(((1 + 2 / pixels) * power(2) - power(1) ** 2) / rows)
    assert loss.item() == pytest.approx(flow_floor(s), abs=5 * deviation)
    assert parts["flow"].item() == loss.item()


def test_flow_targets_lead_from_the_seen_point_to_the_data() -> None:
    x1, cond = data(16)
    goal = FlowMatching(FlowCfg()).targets(x1, cond, toy_net)
    close(goal.x + (1 - column(goal.t)) * goal.y, x1)
    assert not goal.dt.any()
    assert (goal.weight == 1).all()


def test_flow_times_are_logit_normal() -> None:
    torch.manual_seed(0)
    n = 40_000
    t = FlowMatching(FlowCfg(time_mean=-0.4, time_std=1.3)).flow_times(torch.empty(n, dtype=torch.float64))
    logit = t.logit()
    assert logit.mean().item() == pytest.approx(-0.4, abs=5 * 1.3 / math.sqrt(n))
    assert logit.std().item() == pytest.approx(1.3, abs=5 * 1.3 / math.sqrt(2 * n))
    ordered = FlowMatching(FlowCfg(time_std=0)).flow_times(torch.empty(n)).sort().values
    assert (ordered - torch.linspace(0, 1, n)).abs().max() < 2.5 / math.sqrt(n)  # Kolmogorov-Smirnov, p < 1e-5


# The consistency objective


@pytest.mark.parametrize("batch", [2, 8, 16, 32, 128])
def test_exact_flow_map_satisfies_every_ladder_target(batch: int) -> None:
    net = ladder_net(S, LADDER.grid)
    goal = drawn(LADDER, batch, net)
    rows = goal.parts["consistency"]
    close(net(goal.x, goal.t, goal.dt, goal.cond)[rows], goal.y[rows], atol=1e-6)  # times are float64 there and back


def test_exact_flow_map_satisfies_every_continuous_target_above_the_grid() -> None:
    goal = drawn(CONTINUUM, 512, FlowMap(S))
    residual = FlowMap(S)(goal.x, goal.t, goal.dt, goal.cond) - goal.y
    rows = goal.parts["consistency"]
    long = goal.dt[rows] > 2 / CONTINUUM.grid
    assert long.any()
    assert (~long).any()
    close(residual[rows][long], torch.zeros_like(residual[rows][long]), atol=1e-6)


def test_smallest_rung_is_two_instantaneous_half_steps() -> None:
    goal = drawn(LADDER, 128, FlowMap(S))
    ground = goal.dt == 2 / LADDER.grid
    assert ground.any()
    x, t, mean = goal.x[ground], column(goal.t[ground]), column(goal.cond.mean[ground])
    h = 1 / LADDER.grid
    first = FlowMap(S).velocity(x, t, mean)
    second = FlowMap(S).velocity(x + h * first, t + h, mean)
    close(goal.y[ground], (first + second) / 2)


@pytest.mark.parametrize("cfg", [LADDER, CONTINUUM])
def test_no_step_leaves_the_unit_interval_and_both_halves_meet(cfg: ShortcutCfg) -> None:
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def teacher(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        calls.append((x, t, dt))
        return FlowMap(S)(x, t, dt, cond)

    torch.manual_seed(0)
    goal = Shortcut(cfg).targets(*data(640), teacher)
    (x, t, dt), (x_mid, t_mid, dt_mid) = calls
    rows = goal.parts["consistency"]
    assert (goal.t >= 0).all()
    assert (goal.t + goal.dt <= 1 + 1e-12).all()
    close(t, goal.t[rows])
    close(t_mid, goal.t[rows] + goal.dt[rows] / 2)
    close(dt_mid, dt)
    half = goal.dt[rows] / 2
    close(dt, torch.where(half <= 1 / cfg.grid, 0, half))
    close(x_mid, FlowMap(S)(x, t, dt, goal.cond[rows]) * column(half) + x)
    assert not goal.dt[goal.parts["flow"]].any()


def test_ladder_times_are_multiples_of_their_step_and_fill_the_interval() -> None:
    torch.manual_seed(0)
    t, dt, _ = Shortcut(LADDER).ladder(20_000)
    index = t / dt
    assert (index == index.round()).all()
    for j in range(5):
        counts = torch.bincount(index[dt == 0.5**j].long(), minlength=2**j)
        expected = counts.sum() / 2**j
        assert len(counts) == 2**j
        assert ((counts - expected).abs() <= 5 * expected.sqrt() + 1).all()


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 8, 13, 32])
def test_every_level_is_equally_likely_in_any_batch(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    total = torch.zeros(5, dtype=torch.long)
    for start in range(5):
        monkeypatch.setattr(torch, "randint", lambda *_, start=start: torch.tensor(start))
        _, dt, parts = Shortcut(LADDER).ladder(rows)
        level = (-dt.log2()).long()
        count = torch.bincount(level, minlength=5)
        assert count.max() - count.min() <= 1
        assert rows < 5 or count.min() >= 1
        # the names that a batch reports depend on its size alone; each part holds exactly the rows of its step
        assert list(parts) == ["consistency", *(f"consistency_d{2**j}" for j in range(5) if rows >= 5)]
        for j in range(5 if rows >= 5 else 0):
            assert torch.equal(level[parts[f"consistency_d{2**j}"]], level[level == j])
        total += count
    assert torch.equal(total, torch.full_like(total, rows))


def test_continuous_draw_has_its_one_step_atom_and_uniform_remainder() -> None:
    torch.manual_seed(0)
    rows, draws = 9, 4000
    ones = 0
    uniform, begins = [], []
    for _ in range(draws):
        t, dt, parts = Shortcut(CONTINUUM).lengths(rows, When())
        atom = parts["consistency_d1"]
        assert (dt[atom] == 1).all()
        assert not t[atom].any()
        ones += atom.stop
        uniform.append((dt / (1 - t))[atom.stop :])
        begins.append(t[atom.stop :])
    mean = CONTINUUM.one_step_atom * rows  # 1.35: 1 row and a Bernoulli(0.35) one
    assert ones / draws == pytest.approx(mean, abs=5 * math.sqrt(0.35 * 0.65 / draws))
    assert "consistency_d1" not in Shortcut(CONTINUUM).lengths(3, When())[2]
    for found in (torch.cat(uniform), torch.cat(begins)):  # both are uniform: a Kolmogorov-Smirnov bound
        even = torch.linspace(0, 1, len(found), dtype=torch.float64)
        assert (found.sort().values - even).abs().max() < 2.5 / math.sqrt(len(found))


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 10, 32, 64, 128])
def test_loss_weighs_consistency_by_its_share_in_any_batch(batch: int, every: int) -> None:
    """Over a cycle of ``every`` steps the expected loss is share * E[consistency] + (1 - share) * E[flow].

    So neither the batch size nor ``every`` changes it.
    """
    sampler = Shortcut(ShortcutCfg(grid=32, share=0.2, every=every, consistency_weight=1.5))
    totals = {"consistency": 0.0, "flow": 0.0}
    for step in range(every):
        goal = sampler.targets(*data(batch), FlowMap(S), When(step))
        for part in totals.keys() & goal.parts.keys():
            totals[part] += goal.weight[goal.parts[part]].sum().item() / len(goal.x) / every
        assert ("consistency" in goal.parts) == (step == 0)
        assert goal.parts["flow"].stop == len(goal.x)
        assert goal.parts["flow"].start == (goal.parts["consistency"].stop if step == 0 else 0)
    assert totals == pytest.approx({"consistency": 1.5 * 0.2, "flow": 0.8})


def test_default_share_gives_every_row_the_same_weight_where_it_divides_the_batch() -> None:
    assert torch.equal(drawn(ShortcutCfg(share=0.25), 32, FlowMap(S)).weight, torch.ones(32, dtype=torch.float64))


@pytest.mark.parametrize("cfg", [ShortcutCfg(train_guidance=1.5), ShortcutCfg(continuous=True, train_guidance=1.5)])
def test_no_gradient_reaches_the_teacher_and_all_of_it_the_network(cfg: ShortcutCfg) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
            return self.factor * toy_net(x, t, dt, cond)

    net, teacher = Scaled(), Scaled()
    loss, parts = Shortcut(cfg).loss(net, *data(32), teacher=teacher)
    loss.backward()
    assert teacher.factor.grad is None
    assert net.factor.grad is not None
    assert net.factor.grad.abs() > 0
    assert not any(value.requires_grad for value in parts.values())


# Guidance inside the targets


@pytest.mark.parametrize(
    "cfg", [ShortcutCfg(grid=32, train_guidance=2.5), ShortcutCfg(grid=32, continuous=True, train_guidance=2.5)]
)
def test_only_the_smallest_steps_take_guidance_and_longer_ones_inherit_it(cfg: ShortcutCfg) -> None:
    rows = 640
    net = FlowMap(S, held=2.5)
    goal = drawn(cfg, rows, net)
    part = goal.parts["consistency"]
    x, t, dt = goal.x[part], column(goal.t[part]), column(goal.dt[part])
    mean = 2.5 * column(goal.cond.mean[part])  # the guided velocity is the velocity of data around w * mean
    exact = FlowMap(S)
    first = exact.velocity(x, t, mean)
    ground = (first + exact.velocity(x + dt / 2 * first, t + dt / 2, mean)) / 2
    inherited = (exact.transport(x, t, t + dt, mean) - x) / dt
    close(goal.y[part], torch.where(dt / 2 <= 1 / cfg.grid, ground, inherited), atol=1e-6)


def test_guided_targets_cost_two_teacher_calls_of_few_more_rows() -> None:
    sizes: list[int] = []

    def teacher(x: Tensor, t: Tensor, dt: Tensor, cond: Prompt) -> Tensor:
        sizes.append(len(x))
        assert len(x) == len(t) == len(dt) == len(cond.mean)
        return toy_net(x, t, dt, cond)

    goal = Shortcut(ShortcutCfg(grid=32, share=0.5, every=1, train_guidance=2)).targets(*data(20), teacher)
    assert sizes == [12, 12]  # 10 rows on 5 levels: 2 on the smallest rung
    assert goal.parts["consistency"] == slice(0, 10)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_long_steps_do_not_apply_the_trained_guidance_twice(guidance: float, steps: int) -> None:
    sampler = Shortcut(ShortcutCfg(train_guidance=2.0))
    sample = sampler.sample(FlowMap(S, held=2.0), noise(), prompts(*MEANS), steps=steps, guidance=guidance)
    close(sample, guidance * 2.0 * column(prompts(*MEANS).mean) + S * noise())


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_instantaneous_steps_make_up_for_the_guidance_they_lack(guidance: float) -> None:
    sampler = Shortcut(ShortcutCfg(train_guidance=2.0))
    plain = Shortcut(ShortcutCfg())
    sample = sampler.sample(FlowMap(S, held=2.0), noise(), prompts(*MEANS), steps=128, guidance=guidance)
    shifted = Prompt(2.0 * guidance * prompts(*MEANS).mean)
    close(sample, plain.sample(FlowMap(S), noise(), shifted, steps=128))


def test_heun_is_refused_for_shortcut_steps() -> None:
    with pytest.raises(ConfigError, match=r"sampler\.heun is True"):
        ShortcutCfg(heun=True)
