"""The group norm: torch's answers and gradients, by the way that is faster for channels last on a CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.norm import GroupNorm, NormBySums

LAST = torch.channels_last


def exact(norm: GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """The same by torch alone, in double precision and torch's own memory format."""
    h = F.group_norm(x.double().contiguous(), norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
    if scale is not None and shift is not None:
        h = h * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
    return F.silu(h) if norm.act else h


def made(channels: int, act: bool = True) -> GroupNorm:
    norm = GroupNorm(channels, act)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The channels of each input that is normed by its sums."""
    seen: list[int] = []
    apply = NormBySums.apply

    def counting(x: Tensor, *rest: Any) -> Tensor:
        seen.append(x.shape[1])
        return apply(x, *rest)

    monkeypatch.setattr(NormBySums, "apply", counting)
    return seen


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize("channels", [4, 16, 24, 64])
def test_it_answers_and_learns_as_torch(
    channels: int, act: bool, modulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch)
    norm = made(channels, act).double()
    x = torch.randn(3, channels, 5, 4).double().to(memory_format=LAST).requires_grad_()
    by = [torch.randn(3, channels).double().requires_grad_() for _ in range(2 if modulated else 0)]
    along = torch.randn(x.shape).double()
    learned = [x, norm.weight, norm.bias, *by]
    y, expected = norm(x, *by), exact(norm, x, *by)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    grads, wanted = (torch.autograd.grad(answer, learned, along) for answer in (y, expected))
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=0, atol=1e-11)
    assert seen == [channels]
    assert y.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize(("channels", "size"), [(64, 8), (16, 32), (256, 4), (192, 2)])
@pytest.mark.parametrize("modulated", [False, True])
def test_in_bf16_it_is_as_near_to_the_exact_answer_as_rounding_allows(
    channels: int, size: int, modulated: bool
) -> None:
    norm = made(channels)
    x = torch.randn(4, channels, size, size).bfloat16().to(memory_format=LAST).requires_grad_()
    by = [torch.randn(4, channels).bfloat16().requires_grad_() for _ in range(2 if modulated else 0)]
    along = torch.randn(x.shape).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x, *by)
    expected = exact(norm, x, *by)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-5)
    learned = [x, norm.weight, norm.bias, *by]
    grads, wanted = torch.autograd.grad(y, learned, along), torch.autograd.grad(expected, learned, along.double())
    for grad, want in zip(grads, wanted, strict=True):
        assert (grad - want).norm() < 2**-7 * want.norm()


def test_a_mean_far_from_zero_costs_no_more_than_with_torch() -> None:
    norm = made(32)
    x = (torch.randn(8, 32, 8, 8) + 100).to(memory_format=LAST)
    off = (norm(x) - exact(norm, x)).abs().max()
    assert off < 2e-2  # fp32 has seven digits, of which the square of 100 takes four
    assert off < 4 * (F.silu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias)) - exact(norm, x)).abs().max()


def test_pixels_that_are_all_the_same_are_normed_to_the_bias() -> None:
    norm = made(16, act=False)
    y = norm(torch.full((2, 16, 8, 8), 30.1).to(memory_format=LAST))  # mean of squares - square of mean is below 0
    torch.testing.assert_close(y, norm.bias[None, :, None, None].expand(y.shape), rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("channels", "size", "layout", "by_sums"),
    [
        (64, 8, LAST, True), (64, 8, torch.contiguous_format, False), (256, 8, LAST, False), (64, 2, LAST, False),
        (64, 32, LAST, False), (192, 16, LAST, True),
    ],
)  # fmt: skip
def test_the_way_by_sums_is_taken_where_it_is_faster(
    channels: int, size: int, layout: torch.memory_format, by_sums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch)
    made(channels)(torch.randn(2, channels, size, size).to(memory_format=layout))
    assert seen == ([channels] if by_sums else [])


def test_a_part_of_a_larger_image_is_normed_as_that_part(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, norm = counted(monkeypatch), made(32)
    part = torch.randn(2, 32, 10, 10).to(memory_format=LAST)[:, :, 1:-1, 1:-1]  # as nearest neighbour leaves it
    torch.testing.assert_close(norm(part), exact(norm, part).float(), rtol=0, atol=1e-5)
    assert seen == [32]


def test_no_rows_are_answered_by_none() -> None:
    assert made(32)(torch.zeros(2, 32, 8, 8).to(memory_format=LAST)[:0]).shape == (0, 32, 8, 8)
