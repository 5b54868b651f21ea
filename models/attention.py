"""Attention of pixels to each other and to the prompt, with an optional xformers kernel."""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.norm import GroupNorm

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
FEW = 16
"""Up to so many pixels, torch's kernel takes a CPU longer in bfloat16 than in fp32."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """torch's scaled dot-product attention. q [B,heads,N,d], k v [B,heads,M,d], keep [B,M] bool -> [B,heads,N,d]."""
    if q.device.type == "cpu":
        bias = torch.zeros(keep.shape, dtype=q.dtype).masked_fill_(~keep, float("-inf"))[:, None, None, :]
        if not torch.is_grad_enabled():  # torch's fused CPU kernel has a slow backward at the few tokens of a latent
            if q.dtype == torch.bfloat16 and q.shape[2] <= FEW:
                with torch.autocast("cpu", enabled=False):  # which would cast back
                    return sdpa(q.float(), k.float(), v.float(), keep).to(q.dtype)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(2, 3)) + bias  # [B,heads,N,M]
        return torch.matmul(scores.softmax(dim=3).to(v.dtype), v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])


def _xformers(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    (batch, heads, n, _), m = q.shape, k.shape[2]
    padded = m + (-m) % 8  # the kernel wants the mask's rows aligned to 8 elements
    bias = q.new_full((batch, 1, 1, padded), 0.0)
    bias[..., :m].masked_fill_(~keep[:, None, None, :], torch.finfo(q.dtype).min)
    bias = bias.expand(batch, heads, n, padded)[..., :m]
    out = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias)
    return out.transpose(1, 2)


@cache
def xformers_kernel(device_type: str) -> Kernel:
    """xformers' kernel where it runs, else :func:`sdpa` after one warning that says why."""
    try:
        if device_type != "cuda":
            raise RuntimeError(f"it runs on CUDA only, and this is {device_type}")
        import xformers.ops  # noqa: F401  # only to see whether it loads

        probe = torch.zeros(1, 1, 8, 32, device=device_type, dtype=torch.float16)
        _xformers(probe, probe, probe, torch.ones(1, 8, dtype=torch.bool, device=device_type))
    except (ImportError, RuntimeError, NotImplementedError, AttributeError) as reason:
        warnings.warn(
            f"attention 'xformers' is not usable with torch {torch.__version__} ({reason}); "
            "torch's own attention is used instead, with the same results",
            stacklevel=2,
        )
        return sdpa
    return _xformers


def pick_kernel(choice: str, device_type: str) -> Kernel:
    """The kernel of a config's ``attention`` on a kind of device."""
    return xformers_kernel(device_type) if choice == "xformers" else sdpa


def attend(qkv: Tensor, token_kv: Tensor, keep: Tensor, heads: int, kernel: Kernel) -> Tensor:
    """Each pixel looks at all pixels and at the prompt: qkv [B,N,3C], token_kv [B,L,2C], keep [B,L] bool -> [B,N,C].

    Keys and values of the prompt are appended to those of the pixels (Nichol et al. 2022, GLIDE, section 3), so one
    kernel call serves both.
    """
    q, k, v = qkv.chunk(3, dim=2)
    token_k, token_v = token_kv.chunk(2, dim=2)  # [B,L,C] each
    k, v = torch.cat([k, token_k], dim=1), torch.cat([v, token_v], dim=1)  # [B,N+L,C]
    keep = torch.cat([keep.new_ones(q.shape[:2]), keep], dim=1)

    def split(y: Tensor) -> Tensor:  # [B,N,C] -> [B,heads,N,d]
        return y.unflatten(2, (heads, -1)).transpose(1, 2)

    return kernel(split(q), split(k), split(v), keep).transpose(1, 2).reshape(q.shape)


class PixelAttention(nn.Module):
    """Self- and cross-attention in one: each pixel looks at all pixels and at the prompt's tokens.

    Starts as the identity.
    """

    def __init__(self, channels: int, token_channels: int, head_channels: int, kernel: str = "auto") -> None:
        super().__init__()
        if channels % head_channels:
            raise ValueError(f"{channels} channels cannot be split into heads of {head_channels}")
        self.heads = channels // head_channels
        self.kernel = kernel
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.token_kv = nn.Linear(token_channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
        """x [B,C,H,W], tokens [B,L,D], keep [B,L] bool (False: padding) -> [B,C,H,W]."""
        batch, channels, height, width = x.shape
        pixels = self.norm(x).flatten(2).transpose(1, 2).contiguous()  # [B,HW,C]; a strided input makes linear slow
        kernel = pick_kernel(self.kernel, x.device.type)
        mixed = self.out(attend(self.qkv(pixels), self.token_kv(tokens), keep, self.heads, kernel))  # [B,HW,C]
        return x + mixed.transpose(1, 2).reshape(batch, channels, height, width)
