"""What all networks share: one embedding of time, step size, prompt and, where asked for, guidance strength."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from configs.backbone_cfg import BackboneCfg
from configs.checks import ConfigError
from models.blocks import NumberEmbedding
from models.sketch import SketchEncoder
from models.text import Condition, PromptProjection


def bounded(guidance: Tensor) -> Tensor:
    """Guidance strength w [B] -> w / (1 + w) in [0, 1), the range of a :class:`NumberEmbedding`.

    iMF (Geng et al. 2025, arXiv 2512.02012) feeds 1 - 1/w, which has a pole at 0, and w = 0 (ignore the prompt) is a
    strength that users ask for. This is the same curve with w + 1 in the place of w: no strength is cut off above, and
    steps are finest at small w, where they matter most. Negative strengths count as 0.
    """
    w = guidance.clamp_min(0.0)
    return w / (1 + w)


class Backbone(nn.Module):
    """Base of the networks (x [B,C,h,w], t [B], dt [B], Condition) -> [B,C,h,w]; ``emb`` is the embedding's width.

    The parts of the guidance input exist only with ``cfg.guidance_input``, the encoder of sketches only with
    ``cfg.sketch``; without them the strength and the sketch are not looked at. ``levels`` are the channels of the
    features that sketches are added to, each of half the size of the one before; a network without any reads none.
    """

    def __init__(
        self, cfg: BackboneCfg, emb: int, text_features: int, text_width: int, levels: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if cfg.sketch and not levels:
            raise ConfigError(f"backbone.sketch is {cfg.sketch}, but this network reads no sketches: leave it at 0")
        self.sketch = SketchEncoder(cfg.sketch, levels) if cfg.sketch else None
        self.time = NumberEmbedding(emb, cfg.fastest_rate)
        self.step = NumberEmbedding(emb, cfg.fastest_rate)
        self.prompt = PromptProjection(text_features, text_width)
        self.pooled = nn.Linear(text_width, emb)
        self.guidance = NumberEmbedding(emb) if cfg.guidance_input else None
        self.checkpointing, self.random_blocks = cfg.checkpointing, cfg.dropout > 0

    def embed(self, t: Tensor, dt: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """t [B], dt [B], cond of B rows -> embedding [B,E], the prompt's tokens [B,1+L,D] and their mask [B,1+L]."""
        tokens, keep = self.prompt(cond)
        pooled = (tokens * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)  # [B,D]
        total = self.time(t) + self.step(dt) + self.pooled(pooled)
        if self.guidance is not None:
            total = total + self.guidance(bounded(cond.strength))
        return F.silu(total), tokens, keep

    def hints(self, cond: Condition, size: tuple[int, int]) -> list[Tensor] | None:
        """What the sketches add to the features of each level, of which the first has ``size`` (h,w); None: nothing."""
        return None if self.sketch is None or cond.sketch is None else self.sketch(cond.sketch, size)

    def stages(self) -> dict[nn.Module, int]:
        """The blocks whose answers a critic reads (models/latent_critic.py), in their order, and their channels.

        Raises ConfigError where a network names none.
        """
        raise ConfigError("critic.width is above 0, but this network says nothing of its stages, which a critic reads: "
                          "give its class stages() and last_layers() (models/backbone.py)")  # fmt: skip

    def last_layers(self) -> list[nn.Module]:
        """What makes the network's answer of that of the last stage."""
        return []

    def as_image(self, answer: Tensor) -> Tensor:
        """A stage's answer as [B,C,h,w]."""
        return answer

    def run(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """``block(*inputs)``; with ``cfg.checkpointing`` only the inputs are kept for the backward pass.

        What is inside is computed again there (Chen et al. 2016, arXiv 1604.06174), with the same dropout.
        """
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=self.random_blocks)
