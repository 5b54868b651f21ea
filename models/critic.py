"""What ordinary images can be judged by beside their pixels: LPIPS, and a critic trained with the autoencoder."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from configs.checks import ConfigError, first_line
from models.norm import GroupNorm

FIRST_FILTERS: dict[tuple[int, ...], str] = {(64, 3, 3, 3): "vgg", (64, 3, 11, 11): "alex"}
MOST = 1e4
"""Largest weight that evens out two gradients."""


@cache
def lpips(path: str) -> nn.Module:
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924), frozen, in the features of torchvision's VGG16 or AlexNet.

    ``path``: the file of their weights, as torchvision gives them out; torchmetrics brings the weights of the features.
    Raises ConfigError where the file is not there or is another one.
    """
    from torchmetrics.functional.image.lpips import _LPIPS  # its public face downloads the networks

    asked = f"autoencoder.loss.lpips_network is {path!r}, but "
    wanted = "name the file vgg16-397923af.pth or alexnet-owt-7be5be79.pth of torchvision"
    if not Path(path).is_file():
        raise ConfigError(f"{asked}there is no such file: {wanted}")
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        kind = FIRST_FILTERS[tuple(state["features.0.weight"].shape)]
        network = _LPIPS(net=kind, pnet_rand=True)  # type: ignore[arg-type]  # one of its names
        # A layer is called slice1.0 there and features.0 here.
        own = {name: state[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}
        network.net.load_state_dict(own)
    except Exception as reason:  # torch raises six unrelated types for damaged files
        why = first_line(reason, 100)
        raise ConfigError(f"{asked}that holds neither VGG16 nor AlexNet ({why}): {wanted}") from None
    return network.eval().requires_grad_(False)


def lpips_error(path: str, p: Tensor, target: Tensor) -> Tensor:
    """LPIPS between images [B,C,H,W] in [0,1], C = 1 or 3: a mean over the images."""
    both = [2 * x.expand(-1, 3, -1, -1) - 1 for x in (p, target)]
    return lpips(path).to(p.device)(*both).mean()


class PatchCritic(nn.Module):
    """Images [B,C,H,W] in [0,1] -> a logit for each patch [B,1,H/8,W/8]: real or rebuilt (Isola et al. 2017, arXiv
    1611.07004). Its norms are over groups of channels, so that no image depends on another one.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), GroupNorm(wide), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(2 * x - 1).float()


def criticised(
    critic: PatchCritic, x: Tensor, p: Tensor, rest: Tensor, last: Tensor, weight: float
) -> dict[str, Tensor]:
    """What critic and autoencoder learn from each other, in one backward pass; the sum of the two is to be added.

    ``critic`` learns to tell images x [B,C,H,W] from rebuilt ones p by the hinge loss (Lim & Ye 2017, arXiv
    1705.02894); nothing of it reaches the autoencoder. The autoencoder learns to be taken for real, and nothing of that
    reaches the critic: its gradient at ``last``, the decoder's last filter, has ``weight`` times the length of that of
    ``rest``, the autoencoder's other losses (Esser et al. 2021, arXiv 2012.09841, eq. 7).
    """
    learned = (F.relu(1 - critic(x)).mean() + F.relu(1 + critic(p.detach())).mean()) / 2
    if weight == 0:
        return {"critic": learned, "deceived": torch.zeros_like(learned)}
    frozen: dict[str, Any] = {name: value.detach() for name, value in critic.named_parameters()}
    deceived = -functional_call(critic, frozen, (p,)).mean()
    of_rest, own = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (rest, deceived))
    even = (of_rest / own.clamp_min(1e-12)).clamp(max=MOST).detach()
    return {"critic": learned, "deceived": weight * even * deceived}
