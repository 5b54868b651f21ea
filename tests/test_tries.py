"""Masks drawn anew until they are what their caption of geometry says."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from configs.checks import ConfigError
from configs.evaluate_cfg import EvaluateCfg
from configs.generate_cfg import GenerateCfg
from scripts.seeded import TRIES, followed, streams, useful_tries

ASKED = "one small round blob, top"
SIZE = 32


def box(top: int, left: int, side: int) -> Tensor:
    p = torch.full((1, SIZE, SIZE), 0.1)
    p[0, top : top + side, left : left + side] = 0.9
    return p


RIGHT, PLACE_WRONG, ALL_WRONG = box(4, 14, 4), box(26, 14, 4), torch.cat([box(0, 0, 31)])


def from_table(table: dict[int, list[Tensor]], asked: list[list[int]]) -> object:
    """Draws row ``r`` for the j-th time from ``table[r][j]``; a row's seed is its number."""
    noises: list[Tensor] = []

    def once(rows: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        noise = streams(seeds)(torch.empty(len(rows), 3))
        assert not any((noise[i] == old).all() for i in range(len(rows)) for old in noises)  # never the same noise
        noises.extend(noise)
        asked.append(list(rows))
        return [table[row][sum(row in earlier for earlier in asked) - 1] for row in rows]

    return once


def test_only_masks_that_are_something_else_are_drawn_anew_and_the_best_stays() -> None:
    table = {
        0: [RIGHT],  # right at once
        1: [ALL_WRONG, PLACE_WRONG, RIGHT],  # at the third try
        2: [PLACE_WRONG, ALL_WRONG, ALL_WRONG, ALL_WRONG],  # never: the first was best
        3: [ALL_WRONG],  # asked for nothing that can be counted
    }
    asked: list[list[int]] = []
    prompts = [ASKED, ASKED, ASKED, "a cat"]
    masks = followed(4, prompts, [0, 1, 2, 3], 0.5, from_table(table, asked))  # type: ignore[arg-type]  # it is one
    assert asked == [[0, 1, 2, 3], [1, 2], [1, 2], [2]]
    for mask, wanted in zip(masks, (RIGHT, RIGHT, PLACE_WRONG, ALL_WRONG), strict=True):
        assert torch.equal(mask, wanted)


def test_one_try_draws_once_and_the_threshold_counts() -> None:
    asked: list[list[int]] = []
    followed(1, [ASKED], [0], 0.5, from_table({0: [ALL_WRONG]}, asked))  # type: ignore[arg-type]  # it is one
    assert asked == [[0]]
    asked.clear()
    table = {0: [RIGHT, RIGHT]}
    followed(2, [ASKED], [0], 0.95, from_table(table, asked))  # type: ignore[arg-type]  # it is one
    assert asked == [[0], [0]]  # above 0.95 there is nothing


def test_tries_that_could_change_nothing_are_refused() -> None:
    assert useful_tries(1, ["a cat"], 3) == 1
    assert useful_tries(2, ["a cat", ASKED], 1) == 2
    with pytest.raises(ConfigError, match="tries is 2"):
        useful_tries(2, ["a cat"], 1)
    with pytest.raises(ConfigError, match="tries is 3"):
        useful_tries(3, [ASKED], 3)
    with pytest.raises(ConfigError, match="tries"):
        GenerateCfg(prompt=(ASKED,), tries=-1)
    with pytest.raises(ConfigError, match="tries"):
        EvaluateCfg("x", tries=0)
    with pytest.raises(ConfigError, match="tries"):
        GenerateCfg(prompt=(ASKED,), tries=2, to_prompt="a cat")


def test_unless_asked_otherwise_masks_are_drawn_anew_where_that_helps() -> None:
    assert useful_tries(0, ["a cat", ASKED], 1) == TRIES == 16
    assert useful_tries(0, ["a cat"], 1) == 1
    assert useful_tries(0, [ASKED], 3) == 1
    assert GenerateCfg(prompt=(ASKED,)).tries == 0
    assert GenerateCfg(prompt=(ASKED,), to_prompt="a cat").on_a_way  # tries are no hindrance
    assert EvaluateCfg("x").tries == 1
