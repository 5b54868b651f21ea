"""Retrieval accuracy: does a generated mask look like the real mask of its own caption, among others?

The share of generated masks whose caption's real mask is the nearest of 100 real ones, as R-precision does for pictures
and texts (Xu et al. 2018), so it needs no classes. Guessing gives 1/100.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def retrieval_accuracy(
    generated: Tensor, real: Tensor, captions: list[str], *, candidates: int = 100, seed: int = 0
) -> float:
    """Share of rows of ``generated`` [N,D] whose cosine to the same row of ``real`` [N,D] beats that to 99 others.

    The others are drawn for each row from the real rows with another caption, each at most once; their features are
    those of real masks alone, so two models are judged with the same candidates. If t of them tie with the right one,
    the row counts 1 / (t + 1), so features that say nothing score as guessing does.

    Args:
        captions: of the N rows.
        candidates: the right one and the others together.
        seed: of the draw. The caller's random state is left alone.

    Raises:
        ValueError: the shapes do not fit, or a row has fewer others than needed.
    """
    if generated.ndim != 2 or generated.shape != real.shape or len(captions) != len(real) or not captions:
        raise ValueError(
            f"retrieval needs two sets of features [N,D] and N captions, got {tuple(generated.shape)}, "
            f"{tuple(real.shape)} and {len(captions)}"
        )
    if candidates < 2:
        raise ValueError(f"candidates is {candidates}, but a choice needs 2 or more")
    g, r = (F.normalize(x.detach().double().cpu(), dim=1) for x in (generated, real))
    chosen = _draw_others(captions, candidates - 1, torch.Generator().manual_seed(seed))            # [N,K-1]
    score = torch.zeros((), dtype=torch.float64)
    for at in torch.arange(len(g)).split(64):
        right = (g[at] * r[at]).sum(1, keepdim=True)                            # [n,1]
        other = torch.einsum("nd,nkd->nk", g[at], r[chosen[at]])                # [n,K-1]
        tied = (other - right).abs() <= 1e-12
        won = ((other < right) | tied).all(1)
        score += (won / (1 + tied.sum(1))).sum()
    return float(score / len(g))


def _draw_others(captions: list[str], number: int, generator: torch.Generator) -> Tensor:
    """[N,number] rows with another caption than each row's own.

    Raises:
        ValueError: there are not enough.
    """
    kinds = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    kind = torch.tensor([kinds[caption] for caption in captions])               # [N]
    fewest = len(kind) - int(torch.bincount(kind).max())
    if fewest < number:
        raise ValueError(
            f"a caption has only {fewest} masks of other captions, but {number} are needed: give more masks or ask for "
            f"fewer than {fewest + 2} candidates"
        )
    rows = []
    for own in kind:
        order = torch.randperm(len(kind), generator=generator)
        rows.append(order[kind[order] != own][:number])
    return torch.stack(rows)
