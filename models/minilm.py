"""The packaged sentence encoder, read from its own files: importing transformers takes longer than drawing a mask."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

PARTS = {  # names in the file -> names in torch's own transformer
    "attention.output.dense": "self_attn.out_proj", "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1", "output.dense": "linear2", "output.LayerNorm": "norm2",
}  # fmt: skip


class Bert(nn.Module):
    """The encoder of BERT (Devlin et al. 2019, arXiv 1810.04805) from a folder in the format of transformers.

    Raises KeyError or RuntimeError where the weights are not those of a BERT.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        cfg = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        width, eps = cfg["hidden_size"], cfg["layer_norm_eps"]
        self.features: int = width
        self.most: int = cfg["max_position_embeddings"]
        with torch.random.fork_rng(devices=[]):  # whoever loads this encoder goes on with the same random numbers
            self._build(cfg, width, eps)
        self.load_state_dict(renamed(load_file(folder / "model.safetensors")), assign=True)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.eval().requires_grad_(False)

    def _build(self, cfg: dict[str, Any], width: int, eps: float) -> None:
        self.words = nn.Embedding(cfg["vocab_size"], width)
        self.places = nn.Embedding(cfg["max_position_embeddings"], width)
        self.kinds = nn.Embedding(cfg["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps)
        layer = nn.TransformerEncoderLayer(
            width, cfg["num_attention_heads"], cfg["intermediate_size"], 0.0, cfg["hidden_act"], eps, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, cfg["num_hidden_layers"], enable_nested_tensor=False)

    def tokens(self, text: str, most: int | None = None) -> list[int]:
        """Token numbers of a text with the two that mark its ends, ``most`` at most."""
        if most is None:
            self.tokenizer.no_truncation()
        else:
            self.tokenizer.enable_truncation(most)
        return list(self.tokenizer.encode(text).ids)

    def forward(self, tokens: list[int]) -> Tensor:
        """L token numbers -> states of the last layer [L,D]."""
        ids = torch.tensor(tokens)
        h = self.norm(self.words(ids) + self.places.weight[: len(ids)] + self.kinds.weight[0])
        return self.layers(h[None])[0]


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names -> those of :class:`Bert`; queries, keys and values become one matrix."""
    found = {
        "words.weight": weights["embeddings.word_embeddings.weight"],
        "places.weight": weights["embeddings.position_embeddings.weight"],
        "kinds.weight": weights["embeddings.token_type_embeddings.weight"],
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = weights[f"embeddings.LayerNorm.{kind}"]
        number = 0
        while (layer := f"encoder.layer.{number}") + f".attention.self.query.{kind}" in weights:
            into = f"layers.layers.{number}"
            heads = [weights[f"{layer}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"{into}.self_attn.in_proj_{kind}"] = torch.cat(heads)
            for theirs, ours in PARTS.items():
                found[f"{into}.{ours}.{kind}"] = weights[f"{layer}.{theirs}.{kind}"]
            number += 1
    return found
