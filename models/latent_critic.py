"""A critic of latents: it learns to tell what a single step draws from training masks, and the step learns from it.

Where a network learns from answers of a network, its single step ends up no nearer than that teacher is. A critic looks
at the training masks themselves (Goodfellow et al. 2014, arXiv 1406.2661). As in adversarial diffusion distillation it
begins with the weights of the network that it judges, sees latents at several noise levels, and its prompts beside them
(Sauer et al. 2024, arXiv 2403.12015; Lin et al. 2025, arXiv 2501.08316).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import Backbone
from models.norm import GroupNorm
from models.text import Condition

STEEPEST = 100.0
"""Most by which the gradient of a drawn row is magnified where the critic is sure."""


class LatentCritic(nn.Module):
    """Noisy latents x [B,C,h,w] at times t [B], with B prompts -> logits [B,K]: real or drawn, one for each stage.

    It is a copy of ``net``, of which all but the last layers is trained, with a head of ``width`` channels on what each
    of its stages answers.
    """

    def __init__(self, net: Backbone, width: int) -> None:
        super().__init__()
        self.trunk = deepcopy(net).requires_grad_(True)
        for layer in self.trunk.last_layers():
            layer.requires_grad_(False)  # nobody asks for the velocity
        stages = self.trunk.stages()
        self.heads = nn.ModuleList(head(channels, width) for channels in stages.values())
        self.seen: list[Tensor] | None = None
        for stage in stages:
            stage.register_forward_hook(self.see)

    def see(self, stage: nn.Module, inputs: Any, answer: Tensor) -> None:
        """Keep what a stage answers, for its head; not in the backward pass, which calls some again."""
        if self.seen is not None:
            self.seen.append(answer)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        seen: list[Tensor] = []
        self.seen = seen
        self.trunk(x, t, torch.zeros_like(t), cond)
        self.seen = None
        maps = [self.trunk.as_image(answer) for answer in seen]
        logits = [head(h).flatten(1).float().mean(1) for head, h in zip(self.heads, maps, strict=True)]
        return torch.stack(logits, dim=1)


def head(channels: int, width: int) -> nn.Sequential:
    """[B,channels,h,w] -> a logit for each place [B,1,h,w]."""
    return nn.Sequential(
        GroupNorm(channels), nn.Conv2d(channels, width, 1), nn.SiLU(),
        GroupNorm(width), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 1, 1),
    )  # fmt: skip


class Opposed(torch.autograd.Function):
    """The same numbers, whose gradient is turned round (Ganin & Lempitsky 2015, arXiv 1409.7495), that of each row by
    the weight that ``weights`` [B] holds by then, in its only entry.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: list[Tensor]) -> Tensor:
        ctx.weights = weights
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [weights] = ctx.weights
        return -weights.view(-1, 1, 1, 1) * gradients[0], None


def contest(
    critic: LatentCritic, real: Tensor, drawn: Tensor, cond: Condition, *,
    times: tuple[float, float], mismatched: float, heard: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One loss for both sides: the critic's, whose gradient reaches ``drawn`` with its sign turned round, and as steep
    as that of the drawn latents' own loss (the same with real and drawn exchanged), which does not fade where the
    critic is sure (Goodfellow et al. 2014, section 3); of the K logits of a row, on average.

    A real latent and a drawn one of the same prompt stand side by side, and the critic is asked which is which: the
    relativistic pairing loss (Jolicoeur-Martineau 2019, arXiv 1807.00734; Huang et al. 2024, arXiv 2501.05441). Of some
    real latents it is asked, too, whether they were given their own prompt or that of another row (Reed et al. 2016,
    arXiv 1605.05396), or it would come to look at shapes alone.

    Args:
        critic: judges.
        real: latents [B,C,h,w] of masks.
        drawn: latents [B,C,h,w] that a network has drawn for the same prompts.
        cond: B prompts.
        times: earliest and latest noise level (0: noise, 1: none) at which latents are shown.
        mismatched: share of the rows, and weight of their error, that are shown with another row's prompt.
        heard: False while ``drawn`` is to learn nothing yet.

    Returns:
        The scalar loss, and its parts, detached: the error of each question, and the share answered right (half of it
        by chance).
    """
    rows, others = len(real), round(mismatched * len(real))
    t = times[0] + (times[1] - times[0]) * torch.rand(rows, device=real.device)
    weights: list[Tensor] = []
    drawn = cast(Tensor, Opposed.apply(drawn, weights))
    shown = [noisy(real, t), noisy(drawn, t)]
    prompts, moments = cond.concat(cond), [t, t]
    if others:
        rolled = cond[torch.arange(rows, device=real.device).roll(1)[:others]]
        shown, moments, prompts = [*shown, shown[0][:others]], [*moments, t[:others]], prompts.concat(rolled)
    scores = critic(torch.cat(shown), torch.cat(moments), prompts)  # [2B+others,K]
    ahead = scores[:rows] - scores[rows : 2 * rows]
    loss = F.softplus(-ahead).mean()
    weights.append(heard * steeper(ahead.detach()))
    parts = {"critic": loss.detach(), "told": share_above_zero(ahead)}
    if others:
        foreign = foreign_prompts(cond)[:others].float()
        ahead = scores[:others] - scores[2 * rows :]
        error = (F.softplus(-ahead).mean(1) * foreign).sum() / foreign.sum().clamp_min(1)
        parts |= {"critic_prompt": error.detach(), "told_prompt": share_above_zero(ahead, foreign)}
        loss = loss + mismatched * error
    return loss, parts


def steeper(ahead: Tensor) -> Tensor:
    """By how much the loss of the drawn rows is steeper than the critic's, [B], from logits [B,K]."""
    return (ahead.sigmoid().mean(1) / (-ahead).sigmoid().mean(1)).clamp(max=STEEPEST)


def foreign_prompts(cond: Condition) -> Tensor:
    """[B] bool: this row and the one before (for the first, the last) have prompts, and not the same."""
    row = torch.arange(len(cond.keep), device=cond.keep.device)
    asked = cond.keep.any(1)
    return ~cond.same()[row, row.roll(1)] & asked & asked.roll(1)


def noisy(x: Tensor, t: Tensor) -> Tensor:
    """x [B,C,h,w] on the straight path from noise at t [B]."""
    near = t.view(-1, 1, 1, 1)
    return near * x + (1 - near) * torch.randn_like(x)


def share_above_zero(ahead: Tensor, rows: Tensor | None = None) -> Tensor:
    """Of the means of [B,K] over K; of the ``rows`` [B] alone that are 1."""
    right = (ahead.detach().mean(1) > 0).float()
    return right.mean() if rows is None else (right * rows).sum() / rows.sum().clamp_min(1)
