"""From prompts and noise to masks, for any model that has the parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from samplers.between import Between
from samplers.guidance import Guidance
from samplers.known import Known
from samplers.solver import Solver


@dataclass(frozen=True)
class Edit:
    """A given mask or image that a generation starts from, and the part of it that is to stay."""

    image: Tensor
    """[C,H,W] in [0,1]."""
    strength: float = 1.0
    """Share of the way, from its end, that is generated: 1 starts from pure noise and sees nothing of the image."""
    keep: Tensor | None = None
    """[H,W] bool, True where the answer is the image itself; None: nowhere."""

    def cells(self, factor: int) -> Tensor | None:
        """The cells of the latent [H/factor,W/factor] bool all of whose pixels are kept."""
        if self.keep is None:
            return None
        return F.max_pool2d((~self.keep)[None, None].float(), factor)[0, 0] == 0


@dataclass(frozen=True)
class Correction:
    """What the reader of a model is to make of what was drawn (see ``Reader.corrected``)."""

    words: Tensor
    """[B,4] numbers of the words that it is to see in each row."""
    steps: int
    """The most that it may take."""
    shown: Callable[[Tensor, Tensor], Tensor]
    """From the numbers of some rows [n] and their probabilities [n,C,H,W] to the words [n,4] that they show."""


class Generates:
    """Gives a model ``generate``. What it needs of the model: ``encode_text`` (prompts and a device -> a condition),
    ``average`` (the network), ``autoencoder`` (``to_latent`` and ``to_pixels``), ``latent_shape``, and ``sampler``,
    which is used where a call names none; ``reader`` (models/reader.py) can be None.
    """

    encode_text: Any
    average: Any
    autoencoder: Any
    latent_shape: Any
    sampler: Any
    reader: Any

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        noise: Tensor,
        *,
        steps: int | None = None,
        times: Sequence[float] | None = None,
        shift: float = 1.0,
        guidance: float | Guidance = 1.0,
        sampler: Solver | None = None,
        randn: Callable[[Tensor], Tensor] = torch.randn_like,
        negative: str = "",
        towards: tuple[str, Tensor] | None = None,
        edit: Edit | None = None,
        sketch: Tensor | None = None,
        correct: Correction | None = None,
    ) -> Tensor:
        """Probabilities [B,C,H,W] of the masks that B prompts and noise [B,Cz,h,w] give, by the averaged network.

        Args:
            prompts: one for each row.
            noise: standard normal.
            steps, times, shift, guidance, randn: see ``Solver.sample``.
            sampler: another one than that of the training.
            negative: prompt that guidance leads away from (see ``Guided``); empty: from no prompt.
            towards: a second prompt, and how far each row stands on the way to it, [B] (see ``Mixed``).
            edit: a given image; where it is kept, the answer is that image bit for bit.
            sketch: what the masks should follow, for networks that read sketches: [1,1,H,W] for all rows, or [B,1,H,W].
            correct: what the reader is to make of what was drawn; for models that have one.
        """
        others = [negative] * bool(negative.strip()) + ([towards[0]] if towards else [])
        texts = self.encode_text([*prompts, *others], noise.device)  # together, since they share one length
        rows = torch.arange(len(prompts), device=noise.device)

        def sketched(cond: Any) -> Any:
            return cond if sketch is None else replace(cond, sketch=sketch.to(noise).expand(len(prompts), -1, -1, -1))

        cond: Any = sketched(texts[rows])
        if towards:
            last = texts[torch.full_like(rows, len(texts.keep) - 1)]
            cond = Between(cond, sketched(last), towards[1].to(noise))
        options = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        if negative.strip():
            options = replace(options, negative=sketched(texts[torch.full_like(rows, len(prompts))]))
        z = (sampler or self.sampler).sample(
            self.average, noise, cond, steps=steps, times=times, shift=shift, guidance=options, randn=randn,
            known=None if edit is None else self.known(edit, noise.device),
        )
        if correct is not None:
            z = self.corrected(z, correct)
        p = self.autoencoder.to_pixels(z).sigmoid()
        if edit is None or edit.keep is None:
            return p
        return torch.where(edit.keep.to(p.device), edit.image.to(p), p)

    def corrected(self, z: Tensor, correct: Correction) -> Tensor:
        """Latents [B,Cz,h,w] changed by the reader until their masks show what they are asked for."""

        def shown(rows: Tensor, z: Tensor) -> Tensor:
            return correct.shown(rows, self.autoencoder.to_pixels(z).sigmoid()).to(z.device)

        return self.reader.corrected(z, correct.words.to(z.device), correct.steps, shown)

    def known(self, edit: Edit, device: torch.device) -> Known:
        """The latent of a given image, and the part of it to keep."""
        x1 = self.autoencoder.to_latent(edit.image[None].to(device))
        return Known(x1, 1 - edit.strength, edit.cells(edit.image.shape[-1] // self.latent_shape[-1]))
