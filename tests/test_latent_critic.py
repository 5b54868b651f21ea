"""The critic of latents: what it sees, what either side learns from it, and that it stays out of the model."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_2, TINY_TRAIN
from torch import Tensor
from torch.nn import functional as F

from configs.backbone_cfg import BackboneCfg, DiTCfg, UNetCfg
from configs.beginning import require_startable, taken_over
from configs.checks import ConfigError
from configs.diffusion_cfg import CriticCfg, ReaderCfg, SketchCfg, Stage2Cfg
from configs.presets import STAGE_2
from configs.sampler_cfg import FlowCfg, ShortcutCfg
from configs.trainer_cfg import OptimCfg
from diffusion import DiffusionModule, load_diffusion
from models import build_backbone
from models.backbone import Backbone
from models.export import averaged
from models.latent_critic import LatentCritic, contest, foreign_prompts, noisy
from models.optim import Rival, build_optimizer
from models.text import Condition
from scripts.mask_model import load_mask_model
from scripts.train_stage_1 import main as train_stage_1
from scripts.train_stage_2 import main as train_stage_2

SHAPE = (2, 8, 8)
UNET = UNetCfg(width=32, multipliers=(1, 2), blocks=1, attention_sizes=(4,))
DIT = DiTCfg(width=32, depth=2)
WITH = replace(TINY_2, init="one.ckpt", critic=CriticCfg(width=8, alone=1))


def made(cfg: BackboneCfg = UNET, seed: int = 0) -> LatentCritic:
    torch.manual_seed(seed)
    return LatentCritic(build_backbone(cfg, SHAPE, 12, 8), 8)


def prompts(kinds: list[int]) -> Condition:
    """Rows of the same kind have the same prompt; -1 has none."""
    every = torch.randn(8, 3, 12, generator=torch.Generator().manual_seed(1))
    tokens = every[torch.tensor(kinds)]
    return Condition(tokens, torch.tensor([[kind >= 0] * 3 for kind in kinds]))


@pytest.mark.parametrize(("cfg", "stages"), [(UNET, 7), (DIT, 2), (replace(UNET, checkpointing=True), 7)])
def test_a_critic_is_a_copy_with_a_head_for_each_stage(cfg: BackboneCfg, stages: int) -> None:
    torch.manual_seed(0)
    net = build_backbone(cfg, SHAPE, 12, 8).requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    critic = LatentCritic(net, 8)
    for name, value in critic.trunk.state_dict().items():
        assert torch.equal(value, before[name])
    x, t, cond = torch.randn(3, *SHAPE), torch.rand(3), prompts([0, 1, -1])
    logits = critic(x, t, cond)
    assert logits.shape == (3, stages)
    torch.testing.assert_close(critic(x[1:2], t[1:2], cond[1:2]), logits[1:2])  # no row depends on another one
    logits.square().sum().backward()
    assert critic.seen is None  # also where the backward pass calls blocks again
    learning = {name for name, value in critic.named_parameters() if value.requires_grad}
    moved = {name for name, value in critic.named_parameters() if value.grad is not None}
    assert moved == learning  # DDP asks for that
    last = {"norm_out", "conv_out", "modulation_out", "patch_out"}
    assert {name.split(".")[1] for name, _ in critic.named_parameters() if name not in learning} <= last
    torch.optim.SGD(critic.parameters(), 1.0).step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def side_by_side(critic: LatentCritic, real: Tensor, drawn: Tensor, cond: Condition, heard: bool = True) -> Any:
    torch.manual_seed(7)
    return contest(critic, real, drawn, cond, times=(0.5, 0.9), mismatched=0.0, heard=heard)


@pytest.mark.parametrize("cfg", [UNET, DIT])
def test_what_the_critic_loses_the_network_wins(cfg: BackboneCfg) -> None:
    critic, cond = made(cfg), prompts([0, 1, 2, 0])
    real, drawn = torch.randn(4, *SHAPE), torch.randn(4, *SHAPE, requires_grad=True)
    loss, parts = side_by_side(critic, real, drawn, cond)
    weight = next(critic.heads.parameters())
    turned, learned = torch.autograd.grad(loss, [drawn, weight])

    torch.manual_seed(7)  # the same by hand
    t = 0.5 + 0.4 * torch.rand(4)
    scores = critic(torch.cat([noisy(real, t), noisy(drawn, t)]), torch.cat([t, t]), cond.concat(cond))
    ahead = scores[:4] - scores[4:]
    plain = F.softplus(-ahead).mean()
    torch.testing.assert_close(loss, plain)
    assert parts["critic"] == loss
    assert parts["told"] == (ahead.mean(1) > 0).float().mean()
    of_drawn, of_weight = torch.autograd.grad(plain, [drawn, weight])
    steeper = ahead.sigmoid().mean(1) / (1 - ahead.sigmoid()).mean(1)
    torch.testing.assert_close(turned, -of_drawn * steeper.detach().view(-1, 1, 1, 1))
    torch.testing.assert_close(learned, of_weight)
    assert of_drawn.abs().sum() > 0

    loss, _ = side_by_side(critic, real, drawn, cond, heard=False)
    still, learned = torch.autograd.grad(loss, [drawn, weight])
    assert not still.any()
    torch.testing.assert_close(learned, of_weight)


def test_with_one_logit_the_drawn_latents_have_the_gradient_of_their_own_loss() -> None:
    critic, cond = made(), prompts([0, 1, 2, 0])
    first = LatentCritic.forward
    real, drawn = torch.randn(4, *SHAPE), torch.randn(4, *SHAPE, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentCritic, "forward", lambda self, *shown: 9 * first(self, *shown)[:, :1])
        loss, _ = side_by_side(critic, real, drawn, cond)
        [turned] = torch.autograd.grad(loss, drawn)
        torch.manual_seed(7)
        t = 0.5 + 0.4 * torch.rand(4)
        real_score, drawn_score = critic(
            torch.cat([noisy(real, t), noisy(drawn, t)]), torch.cat([t, t]), cond.concat(cond)
        ).chunk(2)
    [own] = torch.autograd.grad(F.softplus(real_score - drawn_score).mean(), drawn)
    torch.testing.assert_close(turned, own)


def test_only_rows_with_two_prompts_that_differ_ask_which_is_right() -> None:
    assert foreign_prompts(prompts([0, 0, 1, -1, 1, 2])).tolist() == [True, False, True, False, False, True]
    critic, real, drawn = made(), torch.randn(4, *SHAPE), torch.randn(4, *SHAPE)
    for kinds, share in (([0, 1, 2, 3], 1.0), ([0, 1, 2, 3], 0.5), ([1, 1, 1, 1], 1.0), ([0, -1, 0, -1], 1.0)):
        cond = prompts(kinds)
        torch.manual_seed(3)
        loss, parts = contest(critic, real, drawn, cond, times=(0.5, 0.9), mismatched=share, heard=True)
        torch.testing.assert_close(loss.detach(), parts["critic"] + share * parts["critic_prompt"])
        if kinds == [0, 1, 2, 3]:
            torch.manual_seed(3)
            t = 0.5 + 0.4 * torch.rand(4)
            shown, rows = noisy(real, t), slice(0, round(4 * share))
            own, other = critic(shown, t, cond), critic(shown, t, cond[torch.tensor([3, 0, 1, 2])])
            error = F.softplus(other - own)[rows].mean()
            torch.testing.assert_close(parts["critic_prompt"], error.detach())
        else:
            assert parts["critic_prompt"] == 0


def test_a_drawn_distribution_moves_onto_the_real_one() -> None:
    """Two prompts, whose real latents lie around +1 and -1; what is drawn begins somewhere between."""
    critic = made(replace(UNET, multipliers=(1,), attention_sizes=(8,)))
    place = torch.tensor([0.2, -0.2], requires_grad=True)
    optimiser = torch.optim.AdamW([
        {"params": critic.parameters(), "lr": 1e-3}, {"params": [place], "lr": 2e-2},
    ], betas=(0.0, 0.99))  # fmt: skip
    kinds = torch.arange(16) % 2
    sign, cond = (1 - 2.0 * kinds).view(-1, 1, 1, 1), prompts(kinds.tolist())
    for step in range(120):
        real = sign + torch.randn(16, *SHAPE)
        drawn = place[kinds].view(-1, 1, 1, 1) + torch.randn(16, *SHAPE)
        loss, _ = contest(critic, real, drawn, cond, times=(0.5, 0.9), mismatched=0.5, heard=step >= 20)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert place.tolist() == pytest.approx([1.0, -1.0], abs=0.3)


def test_the_network_begins_to_learn_later_than_its_critic() -> None:
    net, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 2)
    built = build_optimizer(net, OptimCfg(lr=1e-2, warmup_steps=2), 10, rival=Rival(other, 5e-2, 4))
    optimiser, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    told = []
    for _ in range(10):
        told.append(scheduler.get_last_lr())
        optimiser.step()
        scheduler.step()
    assert [len(group["params"]) for group in optimiser.param_groups] == [1, 1, 1, 1]
    assert [rates[0] for rates in told[:7]] == pytest.approx([0, 0, 0, 0, 5e-3, 1e-2, 1e-2])
    assert [rates[2] for rates in told[:3]] == pytest.approx([2.5e-2, 5e-2, 5e-2])
    assert all(rates[0] == rates[1] and rates[2] == rates[3] for rates in told)
    assert told[-1][0] < 4e-3
    assert told[-1][2] < 1e-2


def test_a_step_of_a_training_is_the_contest_of_its_single_step(tiny_diffusion: DiffusionModule) -> None:
    module = DiffusionModule(replace(WITH, init=""), tiny_diffusion.autoencoder).with_critic()
    assert module.critic is not None
    for name, value in module.critic.trunk.state_dict().items():
        assert torch.equal(value, module.net.state_dict()[name])
    torch.nn.init.normal_(module.net.conv_out.weight, std=0.1)  # type: ignore[arg-type]  # a UNet's
    batch = {"image": torch.rand(4, 1, 32, 32).round(), "prompt": ["a cat", "a dog", "a cat", "a bird"]}
    torch.manual_seed(0)
    loss, parts = module.contend(module.critic, batch)
    assert set(parts) == {"critic", "told", "critic_prompt", "told_prompt"}
    loss.backward()
    assert all(weight.grad is not None for weight in module.net.parameters())  # zeros, while the critic learns alone
    assert not any(weight.grad.any() for weight in module.net.parameters() if weight.grad is not None)
    assert any(weight.grad.any() for weight in module.critic.parameters() if weight.grad is not None)
    module.on_before_optimizer_step(torch.optim.SGD(module.parameters(), 1.0))  # and then none: no moments begin
    assert all(weight.grad is None for weight in module.net.parameters())
    assert any(weight.grad is not None for weight in module.critic.parameters())
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(module.net.parameters())) + len(
        [weight for weight in module.critic.parameters() if weight.requires_grad]
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_an_anchor_pulls_the_step_to_what_the_first_model_draws_from_the_same_noise(
    steps: int, tiny_diffusion: DiffusionModule
) -> None:
    critic = CriticCfg(width=8, alone=0, anchor=5.0, anchor_steps=steps)
    cfg = replace(
        WITH, init="", critic=critic, ema=replace(WITH.ema, teacher_decay=1.0),
        sampler=replace(TINY_2.sampler, condition_drop=0.0),
    )  # fmt: skip
    module = DiffusionModule(cfg, tiny_diffusion.autoencoder).with_critic()
    assert module.critic is not None
    torch.nn.init.normal_(module.net.conv_out.weight, std=0.1)  # type: ignore[arg-type]  # a UNet's
    torch.nn.init.normal_(module.teacher.conv_out.weight, std=0.2)  # type: ignore[arg-type]  # as above
    batch = {"image": torch.rand(4, 1, 32, 32).round(), "prompt": ["a cat", "a dog", "a cat", "a bird"]}
    seen: dict[str, list[Any]] = {"net": [], "teacher": []}
    for name, of in seen.items():
        getattr(module, name).register_forward_hook(lambda net, given, answer, of=of: of.append((given, answer)))
    torch.manual_seed(0)
    loss, parts = module.contend(module.critic, batch)
    [((noise, _, _, _), u)] = seen["net"]
    assert len(seen["teacher"]) == steps
    assert torch.equal(seen["teacher"][0][0][0], noise)
    wanted = noise + sum(answer for _, answer in seen["teacher"]) / steps
    far = (noise + u - wanted).square().mean()
    torch.testing.assert_close(parts["anchor"], far.detach())
    rest = parts["critic"] + critic.mismatched * parts["critic_prompt"]
    torch.testing.assert_close(loss.detach(), rest + 5 * far.detach())
    loss.backward()
    assert all(weight.grad is None for weight in module.teacher.parameters())
    module.cfg = replace(cfg, critic=replace(critic, alone=1))
    module.contend(module.critic, batch)
    assert len(seen["teacher"]) == steps  # nobody asks it while the critic learns alone


COMMON = [
    "--data.batch-size", "8", "--data.limit", "40", "--data.val-fraction", "0.005", "--train.previews", "False",
    "--train.accelerator", "cpu", "--train.precision", "fp32", "--train.channels-last", "off",
    "--train.val-every", "2", "--train.log-every", "1",
]  # fmt: skip


def test_a_critic_trains_resumes_bit_by_bit_and_stays_out_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASK_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    train_stage_1(["animals-tiny", *COMMON, "--train.max-steps", "1", "--train.run-dir", "one"])
    train_stage_2(["animals-tiny", *COMMON, "--backbone.width", "32", "--sampler.begin", "0", "--train.max-steps", "2",
                   "--train.quality", "0", "--train.run-dir", "two", "--autoencoder", "one/last.ckpt"])  # fmt: skip
    run = ["animals-critic", *COMMON, "--init", "two/last.ckpt", "--critic.width", "8", "--critic.alone", "1",
           "--train.max-steps", "4", "--optim.warmup-steps", "0", "--optim.final-lr", "1",
           "--train.quality", "0"]  # fmt: skip
    train_stage_2([*run, "--train.run-dir", "whole"])
    train_stage_2([*run, "--train.run-dir", "parts", "--train.max-steps", "2"])
    train_stage_2([*run, "--train.run-dir", "parts", "--train.resume", "auto"])
    states = [torch.load(f"{name}/last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "parts")]
    assert any(name.startswith("critic.") for name in states[0])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    begun, trained = load_diffusion("two/last.ckpt"), load_diffusion("whole/last.ckpt")
    assert trained.critic is None
    assert trained.cfg.sampler == begun.cfg.sampler
    moved = zip(begun.average.parameters(), trained.average.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)
    assert not any(name.startswith("critic.") for name in averaged(states[0], torch.float32))
    load_mask_model("whole/last.ckpt")
    with next(Path("whole").rglob("metrics.csv")).open() as file:
        told = [row for row in csv.DictReader(file) if row.get("train/told")]
    assert len(told) == 4
    assert all(0 <= float(row["train/told"]) <= 1 for row in told)


@pytest.mark.parametrize(("make", "said"), [
    (lambda: CriticCfg(width=-1), "critic.width is -1"),
    (lambda: CriticCfg(lr=0), "critic.lr is 0"),
    (lambda: CriticCfg(mismatched=1.5), "critic.mismatched is 1.5"),
    (lambda: CriticCfg(earliest=0.95), "below critic.latest"),
    (lambda: CriticCfg(latest=1.1), "critic.latest is 1.1"),
    (lambda: CriticCfg(anchor=-1), "critic.anchor is -1"),
    (lambda: replace(WITH, critic=CriticCfg(anchor=1.0)), "critic.anchor is 1.0, .* 0 without a critic"),
    (lambda: CriticCfg(anchor_steps=0), "critic.anchor_steps is 0"),
    (lambda: replace(WITH, critic=CriticCfg(width=8, alone=1, anchor=1.0)), "0 unless ema.teacher_decay .0.95. is 1"),
    (lambda: replace(WITH, sampler=FlowCfg()), "learns no jumps"),
    (lambda: replace(WITH, reader=ReaderCfg(width=16, only=True)), "0 with reader.only"),
    (lambda: replace(WITH, sketch=SketchCfg(only=True)), "0 with sketch.only"),
    (lambda: replace(WITH, train=replace(TINY_TRAIN, strategy="fsdp")), "take ddp"),
    (lambda: replace(WITH, optim=OptimCfg(muon_lr=1e-3)), "optim.muon_lr"),
    (lambda: replace(WITH, critic=CriticCfg(width=8, alone=2)), "would learn nothing"),
    (lambda: require_startable(replace(WITH, init="")), "name one with --init"),
    (lambda: taken_over(WITH, replace(TINY_2, sampler=FlowCfg())), "init 'one.ckpt' was trained with FlowCfg"),
    (lambda: taken_over(STAGE_2["icons-critic"](), TINY_2), "add --backbone.sketch 0"),
    (lambda: Backbone(UNET, 8, 12, 8).stages(), "give its class stages"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("preset", ["animals-critic", "icons-critic"])
def test_a_model_with_other_guidance_than_the_presets_can_have_a_critic(preset: str) -> None:
    """What the model learned stays what it is asked for, not the sampler of the preset."""
    cfg = STAGE_2[preset]()
    backbone = replace(TINY_2.backbone, sketch=cfg.backbone.sketch)
    learned = replace(TINY_2, backbone=backbone, sampler=ShortcutCfg(train_guidance=2.5))
    assert taken_over(cfg, learned).sampler == learned.sampler


def test_with_guidance_as_an_input_the_step_is_that_of_the_trained_guidance(tiny_diffusion: DiffusionModule) -> None:
    cfg = replace(
        WITH, init="", sampler=ShortcutCfg(train_guidance=2.0, most_guidance=3.0, condition_drop=0.0),
        backbone=replace(WITH.backbone, guidance_input=True),
    )  # fmt: skip
    module = DiffusionModule(cfg, tiny_diffusion.autoencoder).with_critic()
    assert module.critic is not None
    asked = []
    module.net.register_forward_pre_hook(lambda net, given: asked.append(given))
    module.contend(module.critic, {"image": torch.rand(2, 1, 32, 32).round(), "prompt": ["a cat", "a dog"]})
    [(_, t, dt, cond)] = asked
    assert (t == 0).all()
    assert (dt == 1).all()
    assert cond.strength.tolist() == [2, 2]


def test_a_drawn_latent_is_judged_beside_the_sketch_that_it_was_to_follow(tiny_diffusion: DiffusionModule) -> None:
    cfg = replace(
        WITH, init="", backbone=replace(WITH.backbone, sketch=32), sketch=SketchCfg(share=1.0),
        critic=CriticCfg(width=8, alone=0), sampler=replace(TINY_2.sampler, condition_drop=0.0),
    )  # fmt: skip
    module = DiffusionModule(cfg, tiny_diffusion.autoencoder).with_critic()
    assert module.critic is not None
    torch.manual_seed(0)
    asked = []
    for net in (module.net, module.critic.trunk):
        with torch.no_grad():
            for part in net.parameters():  # some begin as zeros, behind which nothing has a gradient
                part.add_(0.02 * torch.randn_like(part))
        net.register_forward_pre_hook(lambda net, given: asked.append(given[3].sketch))
    batch = {"image": torch.rand(4, 1, 32, 32).round(), "prompt": ["a cat", "a dog", "a cow", "a bear"]}
    loss, _ = module.contend(module.critic, batch)
    drawn_by, judged_by = asked
    assert drawn_by.flatten(1).any(1).all()  # each row has one
    real, drawn, foreign = judged_by.split([4, 4, 2])
    assert torch.equal(real, drawn_by)
    assert torch.equal(drawn, drawn_by)
    assert torch.equal(foreign, drawn_by.roll(1, 0)[:2])
    loss.backward()
    assert module.net.sketch is not None
    assert any(p.grad is not None and p.grad.any() for p in module.net.sketch.parameters())


def test_a_model_of_before_there_were_critics_is_read() -> None:
    assert Stage2Cfg().critic.width == 0
