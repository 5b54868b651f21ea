"""Which noise belongs to which mask, and what velocity a noisy point has on average over a batch."""

import torch
from torch import Tensor

from samplers.net import spread

FORBIDDEN = 1e9  # cost of a pair that may not be; far above any inner product of latents


def paired(noise: Tensor, x1: Tensor, same: Tensor | None = None) -> Tensor:
    """The rows of ``noise`` [B,C,h,w] in the order that brings them closest to ``x1`` [B,C,h,w], in squared distance.

    Straighter paths on average: minibatch optimal transport (Pooladian et al. 2023, Tong et al. 2024). Over a batch of
    several prompts it gives each prompt its own part of the noise, which generation does not know of; ``same`` [B,B]
    bool allows only the pairs it names, such as rows of one prompt, and has to allow each row its own noise.
    """
    from scipy.optimize import linear_sum_assignment

    # |noise - x1|^2 = |noise|^2 + |x1|^2 - 2 noise x1, whose first two terms are the same for every assignment
    cost = -(x1.flatten(1).cpu().double() @ noise.flatten(1).cpu().double().T)  # [B data, B noise]
    if same is not None:
        cost = cost.masked_fill(~same.cpu(), FORBIDDEN)
    _, order = linear_sum_assignment(cost.numpy())
    return noise[torch.from_numpy(order).to(noise.device)]


def plug_in_velocity(x_t: Tensor, t: Tensor, x1: Tensor, same: Tensor) -> Tensor:
    """Mean velocity at ``x_t`` [B,C,h,w] and ``t`` [B] if the batch were all the data: [B,C,h,w].

    Each mask j that shares a prompt with row i (``same`` [B,B] bool) could have led to x_t with the noise
    (x_t - t x1_j)/(1 - t), and counts by that noise's density: plug-in velocity of ESC (2512.11831).
    """
    wide = torch.float32 if x_t.device.type == "mps" else torch.float64  # MPS has no float64
    flat, points = x_t.flatten(1).to(wide), x1.flatten(1).to(wide)  # [B,D]
    time = t.to(wide)[:, None]
    distance = flat.square().sum(1)[:, None] - 2 * time * (flat @ points.T) + time**2 * points.square().sum(1)  # [B,B]
    score = (-distance / (2 * (1 - time) ** 2)).masked_fill(~same, float("-inf"))
    mean = (score.softmax(1) @ points).to(x_t.dtype).view_as(x_t)  # E[x1 | x_t]
    return (mean - x_t) / spread(1 - t, x_t)
