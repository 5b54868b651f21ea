"""Both LightningModules: latent normalisation, generation, and that each stage can learn a handful of masks."""

import math
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import TINY_1, TINY_2
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn

from autoencoder import RECONSTRUCTION, REGULARISERS, AutoencoderModule, load_autoencoder
from configs.autoencoder_cfg import AutoencoderCfg, KLCfg, L1LossCfg, VarianceExpansionCfg
from configs.sampler_cfg import DDPMCfg, FlowCfg, IMFCfg, LagrangianCfg, MeanFlowCfg, ShortcutCfg
from configs.shipped import checkpoint_path
from configs.trainer_cfg import OptimCfg
from data.datasets import to_tensor
from data.embedded import load
from diffusion import DiffusionModule, load_diffusion
from metrics.reconstruction import iou
from models.checkpoint import CheckpointError
from models.ema import warmed_decay
from models.optim import build_optimizer, reseed, schedule
from models.steps import time_used
from models.vae import Posterior
from samplers import SAMPLERS, Guidance, When, build_sampler, sampler_for, solvers_of
from trainer import checked_autoencoder


def masks(number: int) -> tuple[Tensor, list[str]]:
    """Real masks of as many words as possible: images [N,1,32,32] and prompts."""
    whole, _ = load(TINY_1.data.source, TINY_1.data)
    words = list(dict.fromkeys(whole.prompts))
    rows = [whole.prompts.index(words[i % len(words)]) + i // len(words) for i in range(number)]
    return to_tensor(np.stack([whole.images[i] for i in rows])), [whole.prompts[i] for i in rows]


def test_to_latent_is_the_normalised_mean_of_the_encoder(tiny_autoencoder: AutoencoderModule) -> None:
    module, (x, _) = tiny_autoencoder.eval(), masks(4)
    expected = (module.average.encode(x).mean - module.latent_mean) / module.latent_std
    torch.testing.assert_close(module.to_latent(x), expected, rtol=0, atol=1e-6)


def test_decoding_a_latent_is_decoding_the_encoders_mean(tiny_autoencoder: AutoencoderModule) -> None:
    module, (x, _) = tiny_autoencoder.eval(), masks(4)
    direct = module.average.decode(module.average.encode(x).mean)
    torch.testing.assert_close(module.to_pixels(module.to_latent(x)), direct, rtol=0, atol=1e-5)


def test_measured_latents_have_mean_0_and_variance_1(tiny_autoencoder: AutoencoderModule) -> None:
    module, (x, _) = tiny_autoencoder.eval(), masks(64)
    module.measure_latents([x[:40], x[40:]])  # the split into batches does not matter
    posterior = module.posterior(x)
    mean = posterior.mean.mean(dim=(0, 2, 3))
    second = (posterior.mean.square() + posterior.logvar.exp()).mean(dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(second - mean.square(), torch.ones(4), rtol=0, atol=1e-5)


def test_latent_statistics_of_nothing_are_refused(tiny_autoencoder: AutoencoderModule) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        tiny_autoencoder.measure_latents([])


def test_the_perceptual_error_is_that_of_the_decoder_row_by_row(tiny_autoencoder: AutoencoderModule) -> None:
    module, (x, _) = tiny_autoencoder.eval().requires_grad_(False), masks(6)
    wanted = module.to_latent(x).requires_grad_()
    answer = (wanted.detach() + 0.1 * torch.randn_like(wanted)).requires_grad_()
    assert not module.perceptual_error(wanted, wanted).any()
    error = module.perceptual_error(answer, wanted)
    assert (error > 0).all()
    alone = torch.cat([module.perceptual_error(answer[i : i + 1], wanted[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(error, alone, rtol=0, atol=1e-5)
    error.sum().backward()
    assert answer.grad is not None
    assert answer.grad.flatten(1).any(1).all()
    assert wanted.grad is None
    raw = answer.detach() * module.latent_std + module.latent_mean
    *features, p = module.average.decoder_features(raw)
    assert len(features) == len(TINY_1.autoencoder.multipliers) * TINY_1.autoencoder.blocks
    for f in features:
        size = f.square().mean(1)
        assert size.max() <= 1 + 1e-5
        assert size.mean() > 0.95  # less than 1 only where the block answers next to nothing
    torch.testing.assert_close(p, 4 * module.average.decode(raw).sigmoid(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("regulariser", [KLCfg(0.1), VarianceExpansionCfg()])
@pytest.mark.parametrize("channels", [1, 3])
def test_losses_are_finite_and_reach_every_weight(regulariser: Any, channels: int) -> None:
    vae = AutoencoderCfg(width=8, multipliers=(1, 2), regulariser=regulariser)
    vae = replace(vae, loss=L1LossCfg()) if channels == 3 else vae
    cfg = replace(TINY_1, autoencoder=vae, data=replace(TINY_1.data, channels=channels))
    module = AutoencoderModule(cfg)
    for parameter in module.vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    loss, parts, _, _ = module.losses(module.vae, torch.rand(2, channels, 32, 32).round())
    loss.backward()
    assert loss.isfinite()
    assert set(parts) == {"reconstruction", "regulariser"}
    for name, parameter in module.vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_regularisers_and_the_plain_loss_are_their_formulas() -> None:
    posterior = Posterior(torch.full((2, 3, 4, 4), 2.0), torch.full((2, 3, 4, 4), math.log(3.0)))
    kl = REGULARISERS[KLCfg](KLCfg(0.1), posterior, 1024)
    assert float(kl) == pytest.approx(0.1 * 48 * 0.5 * (4 + 3 - 1 - math.log(3)) / 1024)
    cfg = VarianceExpansionCfg(weight=0.02, delta=1.0, bound=0.3)
    assert float(REGULARISERS[VarianceExpansionCfg](cfg, posterior, 1024)) == pytest.approx(0.02 / 4 + 0.3 * math.e)
    bound_alone = replace(cfg, weight=0.0)
    assert float(REGULARISERS[VarianceExpansionCfg](bound_alone, posterior, 1024)) == pytest.approx(0.3 * math.e)
    logits, x = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.2])
    assert float(RECONSTRUCTION[L1LossCfg](L1LossCfg(), logits, x)) == pytest.approx(0.4)


@pytest.mark.parametrize("step", [3, 10_000])
def test_each_step_of_a_training_moves_the_averages_by_their_decays(
    step: int, tiny_autoencoder: AutoencoderModule, tiny_diffusion: DiffusionModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L.LightningModule, "optimizer_step", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(L.LightningModule, "global_step", step)
    ema = tiny_diffusion.cfg.ema
    assert ema.decay != ema.teacher_decay
    for module, live, twin, decay in (
        (tiny_autoencoder, tiny_autoencoder.vae, tiny_autoencoder.average, tiny_autoencoder.cfg.ema),
        (tiny_diffusion, tiny_diffusion.net, tiny_diffusion.average, ema.decay),
        (tiny_diffusion, tiny_diffusion.net, tiny_diffusion.teacher, ema.teacher_decay),
    ):
        before = [value.clone() for value in twin.parameters()]
        with torch.no_grad():
            for value in live.parameters():
                value.add_(1.0)
        module.optimizer_step()
        share = warmed_decay(decay, step)
        for old, now, value in zip(before, twin.parameters(), live.parameters(), strict=True):
            torch.testing.assert_close(now, share * old + (1 - share) * value)


def test_weight_decay_is_for_matrices_and_filters_only(tiny_diffusion: DiffusionModule) -> None:
    names = {id(parameter): name for name, parameter in tiny_diffusion.net.named_parameters()}
    groups = build_optimizer(tiny_diffusion.net, OptimCfg(weight_decay=0.03), 10)["optimizer"].param_groups
    decays = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays.keys() == set(names.values())
    filters = {name for name, parameter in tiny_diffusion.net.named_parameters() if parameter.squeeze().ndim > 1}
    assert {name for name, decay in decays.items() if decay} == filters
    assert set(decays.values()) == {0.0, 0.03}


def test_only_the_network_learns(tiny_diffusion: DiffusionModule) -> None:
    module = tiny_diffusion.train()
    assert module.net.training
    assert not any(net.training for net in (module.average, module.teacher, module.autoencoder))
    trained = {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {"net"}


@pytest.mark.parametrize("cfg_type", sorted(SAMPLERS, key=lambda t: t.__name__))
def test_every_trained_weight_gets_a_gradient_from_every_objective(cfg_type: Any) -> None:
    torch.manual_seed(0)
    autoencoder = AutoencoderModule(TINY_1)
    module = DiffusionModule(replace(TINY_2, sampler=cfg_type()), autoencoder).train()
    for parameter in module.net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, prompts = masks(16)
    cond = module.encode_text(prompts)
    loss, _ = module.sampler.loss(module.net, module.latents({"image": x}), cond, teacher=module.teacher)
    loss.backward()
    for name, parameter in module.net.named_parameters():
        assert parameter.grad is not None, name  # DDP would wait for it for ever
    assert all(p.grad is None for p in (*module.teacher.parameters(), *module.autoencoder.parameters()))


@pytest.mark.parametrize("cfg", [MeanFlowCfg(), IMFCfg(train_guidance=2.0), LagrangianCfg()])
def test_derivatives_are_probed_in_fp32_under_bf16_autocast(tiny_diffusion: DiffusionModule, cfg: Any) -> None:
    """The probes are 0.01 apart: bf16 would round their difference away."""
    x, prompts = masks(16)
    seen: list[torch.dtype] = []
    teacher = tiny_diffusion.average
    teacher.conv_in.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        build_sampler(cfg).loss(
            tiny_diffusion.net, tiny_diffusion.latents({"image": x}), tiny_diffusion.encode_text(prompts),
            teacher=teacher,
        )
    assert seen[-2:] == [torch.float32] * 2
    assert len(seen) == {"MeanFlowCfg": 2, "IMFCfg": 4, "LagrangianCfg": 4}[type(cfg).__name__]


def test_cached_moments_give_the_latents_of_the_encoder(tiny_diffusion: DiffusionModule) -> None:
    x, _ = masks(4)
    posterior = tiny_diffusion.autoencoder.posterior(x)
    moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
    reseed(0, 1, 0)
    cached = tiny_diffusion.latents({"moments": moments})
    reseed(0, 1, 0)
    torch.testing.assert_close(cached, tiny_diffusion.latents({"image": x}), rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_generation_does_not_depend_on_the_batch(tiny_diffusion: DiffusionModule, steps: int, guidance: float) -> None:
    prompts = ["a cat", "an elephant", "", "a bear with a hat"]
    noise = torch.randn(4, *tiny_diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    together = tiny_diffusion.generate(prompts, noise, steps=steps, guidance=guidance)
    for i, prompt in enumerate(prompts):
        alone = tiny_diffusion.generate([prompt], noise[i : i + 1], steps=steps, guidance=guidance)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-4)  # fp16 text features
    assert together.shape == (4, 1, 32, 32)
    assert together.min() >= 0
    assert together.max() <= 1


@pytest.mark.parametrize("name", solvers_of(TINY_2.sampler))
def test_any_solver_of_the_network_generates_with_its_options(tiny_diffusion: DiffusionModule, name: str) -> None:
    noise = torch.randn(2, *tiny_diffusion.latent_shape, generator=torch.Generator().manual_seed(0))

    def generate(**how: Any) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        solver = sampler_for(tiny_diffusion.cfg.sampler, name)
        return tiny_diffusion.generate(
            ["a cat", "a dog"], noise, sampler=solver, randn=lambda x: torch.randn(x.shape, generator=generator), **how
        )

    inside = Guidance(2.0, start=0.2)
    shifted = generate(steps=3, shift=2.0, guidance=inside)
    assert torch.equal(shifted, generate(times=[0, 0.2, 0.5, 1], guidance=inside))
    assert not torch.equal(shifted, generate(steps=3, guidance=inside))


def test_ranks_and_steps_draw_unrelated_noise_and_repeat_exactly() -> None:
    def draw(*key: int) -> Tensor:
        reseed(*key)
        return torch.randn(1000)

    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0, 1)]
    streams = torch.stack([draw(*key) for key in keys])
    assert torch.equal(draw(*keys[1]), streams[1])
    correlation = torch.corrcoef(streams) - torch.eye(len(keys))
    assert correlation.abs().max() < 0.2  # six standard deviations


@pytest.mark.slow
def test_stage_1_learns_a_handful_of_masks_by_heart() -> None:
    torch.manual_seed(0)
    x, _ = masks(8)
    cfg = replace(TINY_1, autoencoder=AutoencoderCfg(width=8, multipliers=(1, 2, 4), regulariser=KLCfg(1e-4)))
    module = AutoencoderModule(cfg)
    optimizer = build_optimizer(module.vae, replace(cfg.optim, lr=3e-3), 250)["optimizer"]
    for _ in range(250):
        loss = module.losses(module.vae, x)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = module.vae.decode(module.vae.encode(x).mean) > 0
    assert iou(drawn, x > 0.5).min() > 0.95


@pytest.mark.slow(longest=True)
@pytest.mark.parametrize(("sampler", "levels"), [
    (ShortcutCfg(share=0.25, every=1), (1,)), (FlowCfg(), (1, 2)), (DDPMCfg(timesteps=100, steps=20), (1,)),
])  # fmt: skip
def test_stage_2_learns_a_handful_of_masks_by_heart(sampler: Any, levels: tuple[int, ...]) -> None:
    """Each prompt has one latent, so that one step (twenty for the other samplers) must find it."""
    torch.manual_seed(0)
    prompts = ["a cat", "an elephant", "a bird", "a giraffe"]
    data = replace(TINY_2.data, image_size=16)  # latents of 4x4
    backbone = replace(TINY_2.backbone, multipliers=levels)
    cfg = replace(TINY_2, data=data, backbone=backbone, sampler=sampler)
    module = DiffusionModule(cfg, AutoencoderModule(replace(TINY_1, data=data))).train()
    goal = torch.randn(4, *module.latent_shape)
    cond, count = module.encode_text(prompts * 4), 300 if isinstance(sampler, ShortcutCfg) else 200
    optimizer = build_optimizer(module.net, replace(TINY_2.optim, lr=2e-3), count)
    for _ in range(count):
        loss, _ = module.sampler.loss(module.net, goal.repeat(4, 1, 1, 1), cond, teacher=module.net)
        optimizer["optimizer"].zero_grad()
        loss.backward()
        optimizer["optimizer"].step()
        optimizer["lr_scheduler"]["scheduler"].step()  # at a steady rate, the last steps may undo one of the four
    module.eval()
    steps = 1 if isinstance(sampler, ShortcutCfg) else 20
    z = module.sampler.sample(module.net, torch.randn_like(goal), module.encode_text(prompts), steps=steps)
    assert (z - goal).square().mean() < 0.15  # a goal of the wrong prompt is 2 away, the mean of all goals 0.75


def test_a_checkpoint_of_stage_1_comes_back_whole(tiny_autoencoder: AutoencoderModule, tmp_path: Any) -> None:
    content: dict[str, Any] = {"state_dict": tiny_autoencoder.state_dict()}
    tiny_autoencoder.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    back = load_autoencoder(tmp_path / "a.ckpt")
    assert back.complete
    assert back.cfg == tiny_autoencoder.cfg
    for name, value in tiny_autoencoder.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_stage_2_can_take_the_autoencoder_of_a_model(tiny_diffusion: DiffusionModule, tmp_path: Any) -> None:
    nn.init.normal_(next(tiny_diffusion.autoencoder.vae.parameters()))  # no longer like its average
    content: dict[str, Any] = {"state_dict": tiny_diffusion.state_dict()}
    tiny_diffusion.on_save_checkpoint(content)
    torch.save(content, tmp_path / "model.ckpt")
    cfg = replace(TINY_2, autoencoder=str(tmp_path / "model.ckpt"))
    own, shipped = (checked_autoencoder(c) for c in (cfg, replace(cfg, autoencoder="animals")))
    for back, model in ((own, tiny_diffusion), (shipped, load_diffusion(checkpoint_path("animals")))):
        assert back.cfg == model.autoencoder.cfg
        assert not back.training
        assert not any(weight.requires_grad for weight in back.parameters())
        for name, value in model.autoencoder.state_dict().items():
            assert torch.equal(back.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match="64"):
        checked_autoencoder(replace(cfg, autoencoder="icons"))


class At(Timer):
    """A timer that stands still."""

    def __init__(self, minutes: float, limit: float | None) -> None:
        super().__init__(None if limit is None else timedelta(minutes=limit))
        self.minutes = minutes

    def time_elapsed(self, stage: Any = None) -> float:
        return 60 * self.minutes


@pytest.mark.parametrize(
    ("step", "timers", "progress"),
    [(5, [], 0.5), (5, [At(2.0, 8.0)], 0.5), (5, [At(6.0, 8.0)], 0.75), (0, [At(8.0, 8.0)], 1.0),
     (5, [At(9.0, None)], 0.5)],
)  # fmt: skip
def test_progress_is_that_of_the_steps_or_of_the_time_limit_whichever_is_further(
    step: int, timers: list[Timer], progress: float, tiny_diffusion: DiffusionModule
) -> None:
    cfg = tiny_diffusion.cfg
    tiny_diffusion.cfg = replace(cfg, train=replace(cfg.train, max_steps=10))
    trainer: Any = SimpleNamespace(callbacks=timers, global_step=step)
    tiny_diffusion._trainer = trainer
    tiny_diffusion.used = time_used(trainer)
    assert tiny_diffusion.when() == When(step, progress)


def test_the_learning_rate_falls_with_the_steps_or_with_the_time_limit() -> None:
    cfg = OptimCfg(warmup_steps=10, final_lr=0.1)
    assert schedule(4, cfg, 1000, 0.9) == 0.5  # the warm-up is one of steps
    assert schedule(505, cfg, 1000) == schedule(505, cfg, 1000, 0.4) == pytest.approx(0.55)
    assert schedule(20, cfg, 10**6, 0.5) == pytest.approx(0.55)
    assert schedule(20, cfg, 10**6, 1.0) == schedule(1000, cfg, 1000) == pytest.approx(0.1)
    used = {"time": 0.0}
    cfg = OptimCfg(lr=1.0, warmup_steps=0, final_lr=0.0)
    built = build_optimizer(torch.nn.Linear(2, 2), cfg, 10**6, lambda: used["time"])
    rates = []
    for used["time"] in (0.0, 0.5, 1.0):
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
        rates.append(built["optimizer"].param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)
