"""Networks, text conditions and averages: what holds before any training."""

import copy
import os
import sys
import types
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from configs.autoencoder_cfg import AutoencoderCfg
from configs.checks import ConfigError
from configs.diffusion_cfg import TextCfg, UNetCfg
from models import attention
from models.checkpoint import CheckpointError, read_checkpoint
from models.ema import ema_update_, frozen_twin, warmed_decay
from models.text import Condition, TextEncoder, clean_prompt, locate_encoder
from models.unet import WaveletUNet
from models.vae import LOGVAR_RANGE, VAE, Posterior, kl_divergence, mask_loss, soft_dice_loss

CFG = UNetCfg(width=32, multipliers=(1, 2), blocks=1, attention_sizes=(4, 8))


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(TextCfg(max_tokens=8))


def unet(cfg: UNetCfg = CFG) -> WaveletUNet:
    torch.manual_seed(0)
    net = WaveletUNet(cfg, (4, 8, 8), 16, 16).double().eval()
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


def test_unet_answers_zero_before_training() -> None:
    net = WaveletUNet(CFG, (4, 8, 8), 16, 16)
    x, t, dt = (y.float() for y in inputs(2))
    cond = condition(2)
    assert torch.equal(net(x, t, dt, Condition(cond.tokens.float(), cond.keep)), torch.zeros_like(x))


@pytest.mark.parametrize("resample", ["wavelet", "conv"])
def test_every_row_of_the_unet_is_answered_by_itself(resample: str) -> None:
    net = unet(UNetCfg(width=32, multipliers=(1, 2), blocks=1, attention_sizes=(4, 8), resample=resample))
    (x, t, dt), cond = inputs(3), condition(3)
    together = net(x, t, dt, cond)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], dt[i : i + 1], cond[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_unet_hears_time_step_size_and_prompt() -> None:
    net, (x, t, dt), cond = unet(), inputs(2), condition(2)
    base = net(x, t, dt, cond)
    every = torch.ones(2, dtype=torch.bool)
    for other in (net(x, t / 2, dt, cond), net(x, t, dt / 2, cond), net(x, t, dt, cond.drop(every))):
        assert (other - base).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_padding_tokens_change_nothing() -> None:
    net, (x, t, dt), cond = unet(), inputs(2), condition(2)
    padded = Condition(
        torch.cat([cond.tokens, torch.full((2, 3, 16), 7.0).double()], dim=1),
        torch.cat([cond.keep, torch.zeros(2, 3).bool()], dim=1),
    )
    torch.testing.assert_close(net(x, t, dt, padded), net(x, t, dt, cond), rtol=0, atol=1e-5)


def test_a_dropped_prompt_is_forgotten_whatever_it_was() -> None:
    net, (x, t, dt) = unet(), inputs(2)
    every = torch.ones(2, dtype=torch.bool)
    one, other = condition(2), Condition(condition(2).tokens * -3, condition(2).keep)
    torch.testing.assert_close(net(x, t, dt, one.drop(every)), net(x, t, dt, other.drop(every)), rtol=0, atol=0)


def test_wavelet_and_conv_unets_have_nearly_equal_size() -> None:
    sizes = []
    for resample in ("wavelet", "conv"):
        cfg = UNetCfg(width=64, multipliers=(1, 2), blocks=2, resample=resample)
        sizes.append(sum(p.numel() for p in WaveletUNet(cfg, (4, 8, 8), 384, 128).parameters()))
    assert abs(sizes[0] / sizes[1] - 1) < 0.02


def test_latents_that_do_not_halve_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        WaveletUNet(UNetCfg(width=32, multipliers=(1, 1, 1)), (4, 6, 6), 16, 16)
    with pytest.raises(ValueError, match="multiple of 2"):
        unet()(torch.zeros(1, 4, 7, 8).double(), torch.zeros(1), torch.zeros(1), condition(1))


def test_attention_is_that_of_torch_with_a_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (6, 9, 9))
    keep = torch.rand(2, 9, generator=generator) < 0.7
    keep[:, 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
    torch.testing.assert_close(attention.sdpa(q, k, v, keep), expected, rtol=0, atol=1e-6)


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


def test_a_missing_encoder_is_named(tmp_path: object) -> None:
    with pytest.raises(FileNotFoundError, match=r"text\.encoder"):
        TextEncoder(TextCfg(encoder=f"{tmp_path}/nowhere"))


def test_ema_is_the_weighted_mean_of_every_parameter() -> None:
    net = unet()
    twin = frozen_twin(net)
    before = copy.deepcopy(list(twin.parameters()))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    ema_update_(twin, net, 0.75)
    for old, new, live in zip(before, twin.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * live, rtol=0, atol=1e-12)
    assert not any(p.requires_grad for p in twin.parameters())


def test_ema_warm_up_rises_to_its_decay() -> None:
    decays = [warmed_decay(0.99, step) for step in range(2000)]
    assert decays == sorted(decays)
    assert decays[0] == 0.1
    assert decays[-1] == 0.99


def test_vae_shapes_and_clamped_variance() -> None:
    vae = VAE(AutoencoderCfg(width=8, multipliers=(1, 1, 2), latent_channels=3), 1)
    posterior = vae.encode(torch.full((2, 1, 16, 24), 1e6))
    assert posterior.mean.shape == (2, 3, 4, 6)
    assert posterior.logvar.min() >= LOGVAR_RANGE[0]
    assert posterior.logvar.max() <= LOGVAR_RANGE[1]
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

    ops.memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (6, 9, 9))
    keep = torch.rand(2, 9, generator=generator) < 0.7
    keep[:, 0] = True
    torch.testing.assert_close(attention._xformers(q, k, v, keep), attention.sdpa(q, k, v, keep), rtol=0, atol=1e-6)
