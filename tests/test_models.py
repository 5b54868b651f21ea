"""Networks, text conditions and averages: what holds before any training."""

import copy
import os
import sys
import time
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from configs.autoencoder_cfg import AutoencoderCfg
from configs.backbone_cfg import BackboneCfg, DiTCfg, UNetCfg
from configs.checks import ConfigError
from configs.diffusion_cfg import TextCfg
from models import BACKBONES, attention, build_backbone
from models.backbone import bounded
from models.checkpoint import CheckpointError, read_checkpoint
from models.ema import cast_once, ema_update_, frozen_twin, warmed_decay
from models.minilm import Bert
from models.norm import GroupNorm
from models.sharding import shard_parts
from models.text import Condition, Pretrained, TextEncoder, clean_prompt, locate_encoder
from models.vae import LOGVAR_RANGE, VAE, Posterior, kl_divergence, mask_loss, soft_dice_loss

UNET = UNetCfg(width=32, multipliers=(1, 2), blocks=1, attention_sizes=(4, 8))
SMALL: dict[type[BackboneCfg], BackboneCfg] = {UNetCfg: UNET, DiTCfg: DiTCfg(width=32, depth=2, head_channels=16)}
KINDS = [SMALL[kind] for kind in BACKBONES]  # a new kind of network needs a small config here
VARIANTS: list[BackboneCfg] = [
    *KINDS,
    *(replace(cfg, guidance_input=True) for cfg in KINDS),
    replace(UNET, resample="conv"),
    replace(UNET, resample="conv", conv_kernel=2),
    replace(UNET, gates=True, band_skips=True),
    replace(UNET, gate="sum", gates=True),
    replace(UNET, band_skips=True),
    DiTCfg(width=32, depth=1, patch_size=4, patch="wavelet"),
]


def name_of(cfg: BackboneCfg) -> str:
    usual = vars(SMALL[type(cfg)])
    return "-".join([type(cfg).__name__, *(f"{k}={v}" for k, v in vars(cfg).items() if v != usual[k])])


every_kind = pytest.mark.parametrize("cfg", KINDS, ids=name_of)
every_variant = pytest.mark.parametrize("cfg", VARIANTS, ids=name_of)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(TextCfg(max_tokens=8))


def network(cfg: BackboneCfg) -> nn.Module:
    torch.manual_seed(0)
    net = build_backbone(cfg, (4, 8, 8), 16, 16).double().eval()
    for parameter in net.parameters():  # nothing starts at zero, so that every path counts
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def condition(rows: int, length: int = 5) -> Condition:
    generator = torch.Generator().manual_seed(rows)
    return Condition(torch.randn(rows, length, 16, generator=generator).double(), torch.ones(rows, length).bool())


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + 1)
    x = torch.randn(rows, 4, 8, 8, generator=generator).double()
    return x, torch.rand(rows, generator=generator).double(), torch.rand(rows, generator=generator).double()


def single(cond: Condition) -> Condition:
    return replace(cond, tokens=cond.tokens.float())


@every_variant
def test_networks_answer_zero_before_training(cfg: BackboneCfg) -> None:
    net = build_backbone(cfg, (4, 8, 8), 16, 16)
    x, t, dt = (y.float() for y in inputs(2))
    assert torch.equal(net(x, t, dt, single(condition(2))), torch.zeros_like(x))


@every_variant
def test_every_row_is_answered_by_itself(cfg: BackboneCfg) -> None:
    net = network(cfg)
    (x, t, dt), cond = inputs(3), condition(3).guided(torch.tensor([0.0, 1.0, 4.0]))
    together = net(x, t, dt, cond)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], dt[i : i + 1], cond[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@every_variant
def test_every_weight_of_a_network_gets_a_gradient(cfg: BackboneCfg) -> None:
    net, (x, t, dt) = network(cfg), inputs(3)
    net(x, t, dt, condition(3).drop(torch.tensor([True, False, False]))).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name  # DDP would wait for it for ever
        assert parameter.grad.abs().sum() > 0, name


@every_kind
def test_bf16_autocast_answers_the_same_in_fp32(cfg: BackboneCfg) -> None:
    net, (x, t, dt), cond = network(cfg).float(), (y.float() for y in inputs(2)), single(condition(2))
    exact = net(x, t, dt, cond)
    with torch.autocast("cpu", torch.bfloat16):
        answer = net(x, t, dt, cond)
    assert answer.dtype == torch.float32
    assert (answer - exact).abs().max() < 0.05 * exact.abs().max()  # bf16 rounds by 0.4 % in each of some ten layers


@every_kind
def test_networks_hear_time_step_size_and_prompt(cfg: BackboneCfg) -> None:
    net, (x, t, dt), cond = network(cfg), inputs(2), condition(2)
    base = net(x, t, dt, cond)
    every = torch.ones(2, dtype=torch.bool)
    for other in (net(x, t / 2, dt, cond), net(x, t, dt / 2, cond), net(x, t, dt, cond.drop(every))):
        assert (other - base).abs().amax(dim=(1, 2, 3)).min() > 1e-4


@every_kind
def test_guidance_is_heard_where_it_is_an_input_and_a_prompt_is_there(cfg: BackboneCfg) -> None:
    net, (x, t, dt) = network(replace(cfg, guidance_input=True)), inputs(2)
    cond = condition(2).drop(torch.tensor([True, False]))
    base = net(x, t, dt, cond)
    torch.testing.assert_close(net(x, t, dt, cond.guided(1.0)), base, rtol=0, atol=0)
    for w in (0.0, 0.9, 1.1, 3.0, 30.0):
        change = (net(x, t, dt, cond.guided(w)) - base).abs().amax(dim=(1, 2, 3))
        assert change[0] == 0
        assert change[1] > 1e-4


@every_kind
def test_without_the_input_guidance_is_not_looked_at_and_has_no_weights(cfg: BackboneCfg) -> None:
    net, (x, t, dt), cond = network(cfg), inputs(2), condition(2)
    torch.testing.assert_close(net(x, t, dt, cond.guided(5.0)), net(x, t, dt, cond), rtol=0, atol=0)
    added = network(replace(cfg, guidance_input=True)).state_dict().keys() - net.state_dict().keys()
    assert {name.split(".")[0] for name in added} == {"guidance"}


def test_the_guidance_input_rises_from_0_at_strength_0_towards_1() -> None:
    w = torch.linspace(0, 50, 501)
    torch.testing.assert_close(bounded(w), 1 - 1 / (w + 1))  # iMF's 1 - 1/w, one step further from its pole
    assert (bounded(w).diff() > 0).all()
    assert bounded(torch.tensor([-3.0, 0.0])).tolist() == [0, 0]


@every_kind
def test_xformers_on_a_cpu_changes_no_answer(cfg: BackboneCfg) -> None:
    (x, t, dt), cond = inputs(2), condition(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = network(replace(cfg, attention="xformers"))(x, t, dt, cond)
    torch.testing.assert_close(answer, network(cfg)(x, t, dt, cond), rtol=0, atol=0)


@every_kind
def test_sharding_wraps_every_block_and_changes_no_answer_and_no_gradient(cfg: BackboneCfg) -> None:
    net, (x, t, dt), cond = network(cfg).float(), tuple(y.float() for y in inputs(2)), single(condition(2))
    expected = net(x, t, dt, cond)
    expected.square().mean().backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        shard_parts([net], init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel")))
        answer = net(x, t, dt, cond)
        answer.square().mean().backward()
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-6)
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(parameter.grad.full_tensor(), grads[name], rtol=1e-4, atol=1e-6, msg=name)
    finally:
        torch.distributed.destroy_process_group()
    wrapped = [module for module in net.modules() if isinstance(module, FSDPModule)]
    inside = sum(p.numel() for module in wrapped if module is not net for p in module.parameters())
    assert len(wrapped) > 2
    assert inside > 0.5 * sum(p.numel() for p in net.parameters())  # most weights are gathered block by block


@every_kind
def test_padding_tokens_change_nothing(cfg: BackboneCfg) -> None:
    net, (x, t, dt), cond = network(cfg), inputs(2), condition(2)
    padded = Condition(
        torch.cat([cond.tokens, torch.full((2, 3, 16), 7.0).double()], dim=1),
        torch.cat([cond.keep, torch.zeros(2, 3).bool()], dim=1),
    )
    torch.testing.assert_close(net(x, t, dt, padded), net(x, t, dt, cond), rtol=0, atol=1e-5)


@every_variant
def test_a_dropped_prompt_is_forgotten_whatever_it_was(cfg: BackboneCfg) -> None:
    net, (x, t, dt) = network(cfg), inputs(2)
    every = torch.ones(2, dtype=torch.bool)
    one, other = condition(2).guided(4.0), Condition(condition(2).tokens * -3, condition(2).keep)
    torch.testing.assert_close(net(x, t, dt, one.drop(every)), net(x, t, dt, other.drop(every)), rtol=0, atol=0)


def test_latents_that_do_not_halve_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        build_backbone(UNetCfg(width=32, multipliers=(1, 1, 1)), (4, 6, 6), 16, 16)
    with pytest.raises(ValueError, match="multiple of 2"):
        network(UNET)(torch.zeros(1, 4, 7, 8).double(), torch.zeros(1), torch.zeros(1), condition(1))


def test_latents_that_patches_do_not_fill_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"6x8, but backbone.patch_size 4 .* multiple of 4"):
        build_backbone(DiTCfg(width=32, patch_size=4), (4, 6, 8), 16, 16)
    with pytest.raises(ValueError, match=r"\(4, 8\), but this network was made for \(8, 8\)"):
        network(SMALL[DiTCfg])(torch.zeros(1, 4, 4, 8).double(), torch.zeros(1), torch.zeros(1), condition(1))


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_that_of_torch_with_a_mask(training: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (6, 9, 9))
    keep = torch.rand(2, 9, generator=generator) < 0.7
    keep[:, 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
    with torch.set_grad_enabled(training):  # without gradients it goes another way
        torch.testing.assert_close(attention.sdpa(q, k, v, keep), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [4, 16, 64])
def test_attention_of_few_pixels_in_bf16_is_computed_in_fp32(count: int) -> None:
    q, k, v = (torch.randn(2, 3, length, 8).bfloat16() for length in (count, 20, 20))
    keep = torch.rand(2, 20) > 0.3
    with torch.inference_mode():
        exact = attention.sdpa(q.float(), k.float(), v.float(), keep)
        with torch.autocast("cpu", torch.bfloat16):
            answer = attention.sdpa(q, k, v, keep)
    assert answer.dtype == torch.bfloat16
    torch.testing.assert_close(answer.float(), exact, rtol=0, atol=2e-2)
    assert answer.equal(exact.bfloat16()) == (count <= attention.FEW)


def test_xformers_off_cuda_warns_once_and_gives_torchs_attention() -> None:
    attention.xformers_kernel.cache_clear()
    with pytest.warns(UserWarning, match="CUDA only"):
        assert attention.xformers_kernel("cpu") is attention.sdpa
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention.xformers_kernel("cpu") is attention.sdpa


def test_condition_rows_repeat_and_concat() -> None:
    cond = condition(3)
    twice = cond.repeat(2)
    assert torch.equal(twice.tokens[3:], cond.tokens)
    assert torch.equal(cond[1:].concat(cond[:1]).tokens, cond.tokens[[1, 2, 0]])
    dropped = cond.drop(torch.tensor([True, False, True]))
    assert dropped.keep.sum(1).tolist() == [0, 5, 0]
    assert cond.keep.all()  # drop makes a new condition


def test_guidance_travels_with_its_row_and_goes_with_its_prompt() -> None:
    cond = condition(3)
    assert cond.strength.tolist() == [1, 1, 1]
    assert cond.guided(2.5).strength.tolist() == [2.5, 2.5, 2.5]
    guided = cond.guided(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64))
    assert guided.repeat(2).strength.tolist() == [2, 3, 4, 2, 3, 4]
    assert guided[1:].concat(cond[:1]).strength.tolist() == [3, 4, 1]
    assert cond[:1].concat(guided[torch.tensor([False, True, False])]).strength.tolist() == [1, 3]
    rows = torch.tensor([True, False, False])
    for order in (guided.drop(rows), cond.drop(rows).guided(guided.strength)):
        assert order.strength.tolist() == [1, 3, 4]
    assert guided.to(torch.device("cpu")).strength.tolist() == [2, 3, 4]
    assert guided.strength.tolist() == [2, 3, 4]  # nothing above changed it


def test_same_compares_the_kept_tokens_of_each_pair() -> None:
    words = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    kind = torch.tensor([0, 1, 0, 2, 1, 0, 2])
    cond = Condition(words[kind], torch.ones(7, 5).bool())
    expected = kind[:, None] == kind
    assert torch.equal(cond.same(), expected)
    assert torch.equal(cond.guided(torch.arange(7.0)).same(), expected)
    tokens, keep = cond.tokens.clone(), cond.keep.clone()
    tokens[2, 4], keep[0, 4], keep[2, 4] = 7.0, False, False  # rows 0 and 2 differ in a padding token; 5 is longer
    expected[[0, 2], 5], expected[5, [0, 2]] = False, False
    assert torch.equal(Condition(tokens, keep).same(), expected)
    dropped = Condition(tokens, keep).drop(kind == 1).drop(kind == 2)
    assert dropped.same()[1].tolist() == [False, True, False, True, True, False, True]


def test_same_of_encoded_prompts_is_equality_of_their_texts(encoder: TextEncoder) -> None:
    prompts = ["a cat", "a bird", "", "a cat", " ", "a cat on a mat", "a bird"]
    expected = [[a.strip() == b.strip() for b in prompts] for a in prompts]
    assert encoder(prompts).same().tolist() == expected


@given(text=st.text(max_size=300))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_encoded(encoder: TextEncoder, text: str) -> None:
    cond = encoder([text, "a cat"])
    assert cond.tokens.shape[0] == 2
    assert cond.tokens.isfinite().all()
    assert cond.keep.sum(1)[0] <= 8
    assert (cond.keep[0].any().item()) == bool(clean_prompt(text))


def test_prompts_are_padded_to_the_batch_and_cached(encoder: TextEncoder) -> None:
    cond = encoder(["a cat", "a cat on a mat", ""])
    assert cond.tokens.shape[1] == cond.keep.sum(1).max()
    assert cond.keep.sum(1).tolist() == [4, 7, 0]  # [CLS] a cat [SEP]
    assert {"a cat", "a cat on a mat", ""} <= set(encoder.cache)
    again = encoder(["a cat"])
    assert torch.equal(again.tokens[0], cond.tokens[0, :4])


def test_long_prompts_are_cut_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="only the first 8"):
        cond = TextEncoder(TextCfg(max_tokens=8))(["a very long prompt " * 30])
    assert cond.keep.sum() == 8


def test_no_more_tokens_than_the_encoder_has_places_for() -> None:
    many = TextEncoder(TextCfg(max_tokens=512))(["1 2 3 4 5 6 7 8 9 " * 100])
    assert many.keep.sum() == 512
    with pytest.raises(ConfigError, match=r"text\.max_tokens is 513, .* reads at most 512"):
        TextEncoder(TextCfg(max_tokens=513))


def test_prompts_mean_the_same_when_most_are_forgotten(encoder: TextEncoder) -> None:
    forgetful = TextEncoder(TextCfg(max_tokens=8), cache_size=2)
    for prompts in (["a cat", "", "a dog"], ["a bird on a tree", "a cat"], ["", ""], ["a dog", "a dog", "a cat"]):
        one, other = encoder(prompts), forgetful(prompts)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.keep, other.keep)
        assert len(forgetful.cache) <= max(2, len(set(prompts)))
        assert not one.tokens[~one.keep].any()


def test_threads_that_read_at_the_same_time_get_their_own_prompts(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, prompts = TextEncoder(TextCfg(max_tokens=8)), [f"a cat of {number}" for number in range(8)]
    read = shared.read
    monkeypatch.setattr(shared, "read", lambda prompt: time.sleep(0.01) or read(prompt))  # others come in between
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda prompt: shared([prompt]), prompts))
    for prompt, cond in zip(prompts, found, strict=True):
        assert torch.equal(cond.tokens, encoder([prompt]).tokens)
        assert torch.equal(shared([prompt]).tokens, cond.tokens)


def test_the_prompts_that_were_read_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    forgetful, read = TextEncoder(TextCfg(max_tokens=8), cache_size=5), []
    monkeypatch.setattr(forgetful, "read", lambda prompt: read.append(prompt) or prompt)
    for prompt in "abcdef":
        forgetful([prompt])
    assert list(forgetful.cache) == ["d", "e", "f"]
    assert len(forgetful.states) == 1 + 3 * 3  # [CLS], a letter, [SEP]
    del read[:]
    forgetful(["f", "e", "d"])
    assert not read


def test_prompts_mean_the_same_inside_a_bf16_training(encoder: TextEncoder) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = TextEncoder(TextCfg(max_tokens=8))(["a whale"])
    assert torch.equal(inside.tokens, encoder(["a whale"]).tokens)


def test_a_missing_encoder_is_named(tmp_path: object) -> None:
    with pytest.raises(FileNotFoundError, match=r"text\.encoder"):
        TextEncoder(TextCfg(encoder=f"{tmp_path}/nowhere"))


def test_ema_is_the_weighted_mean_of_every_parameter() -> None:
    net = network(UNET)
    twin = frozen_twin(net)
    before = copy.deepcopy(list(twin.parameters()))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    ema_update_(twin, net, 0.75)
    for old, new, live in zip(before, twin.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * live, rtol=0, atol=1e-12)
    assert not any(p.requires_grad for p in twin.parameters())


class Casts(TorchDispatchMode):
    """Counts how often weights are cast to bfloat16."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.places = {weight.data_ptr() for weight in weights}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.places:
            self.count += kwargs.get("dtype") == torch.bfloat16
        return func(*args, **(kwargs or {}))


def test_a_twin_that_is_asked_several_times_casts_its_weights_once() -> None:
    twin = frozen_twin(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    x = torch.randn(2, 4)
    counts = []
    for calls in (1, 2):
        low = torch.autocast("cpu", torch.bfloat16)
        with cast_once(twin), torch.no_grad(), low, Casts(list(twin.parameters())) as casts:
            answers = [twin(x) for _ in range(calls)]
        counts.append(casts.count)
        assert not answers[-1].requires_grad
    assert counts == [4, 4]
    assert not any(weight.requires_grad for weight in twin.parameters())
    with pytest.raises(RuntimeError), cast_once(twin):
        raise RuntimeError
    assert not any(weight.requires_grad for weight in twin.parameters())


def test_ema_warm_up_rises_to_its_decay() -> None:
    decays = [warmed_decay(0.99, step) for step in range(2000)]
    assert decays == sorted(decays)
    assert decays[0] == 0.1
    assert decays[-1] == 0.99


def test_vae_shapes_and_clamped_variance() -> None:
    vae = VAE(AutoencoderCfg(width=8, multipliers=(1, 1, 2), latent_channels=3), 1)
    bias = vae.encoder[-1].bias
    assert isinstance(bias, nn.Parameter)
    for far, bound in zip((-1e3, 1e3), LOGVAR_RANGE, strict=True):
        bias.data[3:] = far
        posterior = vae.encode(torch.rand(2, 1, 16, 24))
        assert posterior.mean.shape == (2, 3, 4, 6)
        assert posterior.mean.abs().max() < 100
        assert (posterior.logvar == bound).all()
    assert vae.decode(posterior.mean).shape == (2, 1, 16, 24)


def test_kl_is_that_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, logvar = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(kl_divergence(Posterior(mean, logvar)), exact)


def test_soft_dice_of_perfect_empty_and_disjoint_masks() -> None:
    full, empty = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    sure = torch.cat([100 * (2 * full - 1), 100 * (2 * empty - 1), 100 * (2 * empty - 1)])
    loss = soft_dice_loss(sure, torch.cat([full, empty, full]))
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.0, 1 - 1 / 17]), rtol=0, atol=1e-6)


def test_mask_loss_is_bce_plus_dice_and_finite_for_empty_masks() -> None:
    logits, target = torch.randn(2, 1, 4, 4), torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    plain = F.binary_cross_entropy_with_logits(logits, target)  # as many foreground as background pixels
    torch.testing.assert_close(mask_loss(logits, target, 0.0, 10.0), plain)
    for foreground, weight in ((8, 3.0), (1, 10.0)):  # of 32 pixels; 31 times as heavy would be above the bound
        few = (torch.arange(32) < foreground).float().reshape(2, 1, 4, 4)
        bce = F.binary_cross_entropy_with_logits(logits, few, pos_weight=torch.tensor(weight))
        torch.testing.assert_close(mask_loss(logits, few, 0.7, 10.0), bce + 0.7 * soft_dice_loss(logits, few).mean())
    assert mask_loss(logits, torch.zeros_like(logits), 1.0, 10.0).isfinite()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_damaged_checkpoints_are_one_kind_of_error(tmp_path: object, content: bytes) -> None:
    path = f"{tmp_path}/x.ckpt"
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(CheckpointError, match="make one with: the command"):
        read_checkpoint(path, "diffusion", "the command")


def test_missing_foreign_and_remote_checkpoints_are_refused(tmp_path: object) -> None:
    for path in (f"{tmp_path}/none.ckpt", f"{tmp_path}", "https://example.org/x.ckpt"):
        with pytest.raises(CheckpointError):
            read_checkpoint(path, "diffusion", "the command")
    torch.save({"state_dict": {}}, f"{tmp_path}/foreign.ckpt")
    with pytest.raises(CheckpointError, match="another program"):
        read_checkpoint(f"{tmp_path}/foreign.ckpt", "diffusion", "the command")


def test_a_pickle_runs_nothing(tmp_path: object) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path)!r} + '/ran', 'w')",)

    torch.save({"state_dict": Evil()}, f"{tmp_path}/evil.ckpt")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(f"{tmp_path}/evil.ckpt", "diffusion", "the command")
    assert not os.path.exists(f"{tmp_path}/ran")


@pytest.mark.parametrize("text", ["a cat", "", "Café réservé, naïve umbrella 😀 中文", "cat " * 40, "x\u0301y"])
def test_the_packaged_encoder_answers_as_transformers_does(text: str) -> None:
    folder = locate_encoder("all-MiniLM-L6-v2")
    torch.manual_seed(0)
    ours, after = Bert(Path(folder)), torch.rand(())
    torch.manual_seed(0)
    assert after == torch.rand(())  # others get the same random numbers
    theirs = Pretrained(folder)
    assert ours.features == theirs.features == 384
    assert ours.tokens(text) == theirs.tokens(text)
    assert ours.tokens(text, 16) == theirs.tokens(text, 16)
    assert len(ours.tokens(text, 16)) <= 16
    with torch.inference_mode():
        torch.testing.assert_close(ours(ours.tokens(text, 16)), theirs(theirs.tokens(text, 16)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_other_text_encoders_load_from_a_local_folder(tmp_path: object, kind: str) -> None:
    """Small untrained CLIP and T5 networks with the packaged tokenizer: the text half, or the encoder half, is used."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(locate_encoder("all-MiniLM-L6-v2"))
    size = {"vocab_size": len(tokenizer)}
    if kind == "clip":
        text = size | {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))
    else:
        model = transformers.T5Model(transformers.T5Config(**size, d_model=24, d_ff=32, num_layers=1, num_heads=2))
    tokenizer.save_pretrained(str(tmp_path))
    model.save_pretrained(str(tmp_path))
    encoder = TextEncoder(TextCfg(encoder=str(tmp_path), max_tokens=8))
    assert (encoder.model.most > 10**6) == (kind == "t5")  # whose attention goes by distances
    cond = encoder(["a cat", "", "a cat on a mat"])
    assert encoder.features == 24
    assert cond.keep.sum(1).tolist() == [4, 0, 7]
    assert cond.tokens.isfinite().all()


def test_the_xformers_call_means_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with xformers' layout ([B,N,heads,d], additive bias) gets what makes it equal to torch's."""
    ops = types.ModuleType("xformers.ops")

    def memory_efficient_attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_bias: torch.Tensor
    ) -> torch.Tensor:
        assert attn_bias.shape == (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        assert attn_bias.stride(0) % 8 == 0  # the kernel's alignment rule
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias).transpose(1, 2)

    ops.memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]  # a stand-in made here
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (6, 9, 9))
    keep = torch.rand(2, 9, generator=generator) < 0.7
    keep[:, 0] = True
    torch.testing.assert_close(attention._xformers(q, k, v, keep), attention.sdpa(q, k, v, keep), rtol=0, atol=1e-6)


def test_groups_of_a_norm_are_all_alike_at_any_width() -> None:
    for channels in range(1, 300):
        norm = GroupNorm(channels)
        assert channels % norm.num_groups == 0
        assert channels < 8 or channels / norm.num_groups >= 4
        most = max(1, min(32, channels // 4))
        assert norm.num_groups == most or channels % most  # as trained models have them
    assert VAE(AutoencoderCfg(width=72), 1).encode(torch.rand(1, 1, 16, 16)).mean.shape == (1, 4, 4, 4)



@pytest.mark.parametrize("modulated", [False, True])
def test_the_norm_of_bf16_channels_last_is_that_of_torch(modulated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = GroupNorm(24, act=True)
    for part in norm.parameters():
        nn.init.normal_(part, generator=generator)
    x = 3 + 2 * torch.randn(4, 24, 6, 6, generator=generator).bfloat16()
    rows = torch.randn(2, 4, 24, generator=generator).bfloat16().unbind() if modulated else ()
    wide = x.float().requires_grad_()
    wanted = norm(wide, *[row.float() for row in rows])
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    found = norm(last, *rows)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.float(), wanted, rtol=2**-6, atol=2**-6)
    weigh = torch.randn(x.shape, generator=generator)
    (own,) = torch.autograd.grad((found * weigh.bfloat16()).sum(), last)
    (exact,) = torch.autograd.grad((wanted * weigh).sum(), wide)
    torch.testing.assert_close(own.float(), exact, rtol=2**-5, atol=2**-5)
