"""The transformer's patches, positions and blocks against closed forms."""

import pytest
import torch
from torch.nn import functional as F

from configs.backbone_cfg import DiTCfg
from models.dit import DiT, DiTBlock, join_patches, positions, split_patches
from models.text import Condition

every_size = pytest.mark.parametrize("size", [1, 2, 4])


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@every_size
@pytest.mark.parametrize("wavelet", [False, True])
def test_joining_undoes_splitting(size: int, wavelet: bool) -> None:
    x = image(2, 3, 8, 12)
    patches = split_patches(x, size, wavelet)
    assert patches.shape == (2, 3 * size**2, 8 // size, 12 // size)
    torch.testing.assert_close(join_patches(patches, size, wavelet), x, rtol=0, atol=1e-12)


@every_size
def test_bands_of_a_patch_are_its_pixels_in_another_orthonormal_basis(size: int) -> None:
    """Inner products of patches are the same in both forms, so the same linear layers can be learned from both."""
    x = image(2, 3, 8, 8)
    pixels, bands = (split_patches(x, size, wavelet).flatten(2) for wavelet in (False, True))  # [B,C*size^2,N]
    torch.testing.assert_close(
        bands.transpose(1, 2) @ bands, pixels.transpose(1, 2) @ pixels, rtol=0, atol=1e-10
    )


@every_size
def test_a_linear_layer_of_patches_is_a_convolution_of_their_size_and_stride(size: int) -> None:
    x, weight = image(2, 3, 8, 8), image(5, 3 * size**2)
    linear = F.linear(split_patches(x, size, wavelet=False).movedim(1, 3), weight).movedim(3, 1)
    conv = F.conv2d(x, weight.reshape(5, 3, size, size), stride=size)
    torch.testing.assert_close(linear, conv, rtol=0, atol=1e-10)


def test_inner_products_of_positions_depend_on_the_displacement_only() -> None:
    table = positions(32, 3, 5)[0].double()  # [15,32]
    row, column = torch.arange(15) // 5, torch.arange(15) % 5
    rates = 10000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    expected = sum(
        torch.cos((axis[:, None] - axis)[..., None] * rates).sum(2) for axis in (row, column)
    )  # sin a sin b + cos a cos b = cos(a - b)
    torch.testing.assert_close(table @ table.T, expected, rtol=0, atol=1e-5)
    assert (torch.cdist(table, table) + 9 * torch.eye(15) > 0.1).all()  # no two places look alike


def test_a_block_starts_as_the_identity() -> None:
    block = DiTBlock(DiTCfg(width=32), 32, 16)
    x, emb, tokens = image(2, 6, 32).float(), image(2, 32).float(), image(2, 4, 16).float()
    torch.testing.assert_close(block(x, emb, tokens, torch.ones(2, 4).bool()), x, rtol=0, atol=0)


def test_places_are_told_apart_by_their_positions_only() -> None:
    """Without positions, pixels that change places take their answers along."""
    torch.manual_seed(0)
    net = DiT(DiTCfg(width=32, depth=2, patch_size=1), (4, 4, 4), 16, 16).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = image(2, 4, 4, 4), torch.rand(2)
    cond = Condition(image(2, 3, 16), torch.ones(2, 3).bool())
    order = torch.randperm(16)
    moved = x.flatten(2)[..., order].reshape(x.shape)

    def gap() -> torch.Tensor:
        return (net(moved, t, t, cond).flatten(2) - net(x, t, t, cond).flatten(2)[..., order]).abs().max()

    assert gap() > 1e-2
    net.positions.zero_()
    assert gap() < 1e-5
