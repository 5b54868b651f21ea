import pytest
import torch
from torch import Tensor

from metrics import memorisation as module
from metrics.memorisation import best_match, memorisation, moved
from metrics.reconstruction import iou


def blobs(n: int, size: int, seed: int) -> Tensor:
    """[N,size,size] rectangles of random place and size with some holes; a few are empty."""
    g = torch.Generator().manual_seed(seed)
    masks = torch.zeros(n, size, size, dtype=torch.uint8)
    for mask in masks[2:]:
        y, x, height, width = torch.randint(0, size, (4,), generator=g).tolist()
        mask[y : y + height, x : x + width] = 1
    return masks * (torch.rand(n, size, size, generator=g) < 0.9)


def every_move(mask: Tensor, shift: int, flip: bool) -> list[Tensor]:
    """All copies of a mask [H,W], pixel by pixel."""
    height, width = mask.shape
    copies = []
    for side in [mask, mask.flip(-1)] if flip else [mask]:
        for dy in range(-shift, shift + 1):
            for dx in range(-shift, shift + 1):
                copy = torch.zeros_like(mask)
                for y in range(height):
                    for x in range(width):
                        if 0 <= y - dy < height and 0 <= x - dx < width:
                            copy[y, x] = side[y - dy, x - dx]
                copies.append(copy)
    return copies


@pytest.mark.parametrize(("shift", "flip"), [(0, False), (0, True), (1, False), (1, True), (2, True)])
def test_the_copies_of_a_mask_are_all_its_places_and_mirror_images(shift: int, flip: bool):
    masks = blobs(5, 7, 0)
    copies = moved(masks, shift, flip).reshape(-1, 5, 7, 7)
    for i, mask in enumerate(masks):
        expected = {tuple(copy.flatten().tolist()) for copy in every_move(mask, shift, flip)}
        assert {tuple(copy.flatten().tolist()) for copy in copies[:, i]} == expected


@pytest.mark.parametrize(("shift", "flip"), [(0, False), (1, True), (2, False)])
def test_the_best_match_is_that_of_a_search_of_every_pair_and_every_move(monkeypatch, shift: int, flip: bool):
    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(module, "COLUMNS", 40)  # many small blocks, so that the bound skips some
    masks, training = blobs(20, 9, 1), blobs(30, 9, 2)
    best, index = best_match(masks, training, shift=shift, flip=flip)
    everything = moved(training, shift, flip)
    scores = torch.stack([iou(mask.expand_as(everything), everything) for mask in masks])           # [N,copies*M]
    assert torch.equal(best, scores.amax(1))
    by_training = scores.reshape(20, -1, 30).amax(1)                                                # [N,M]
    assert torch.equal(by_training.gather(1, index[:, None])[:, 0], best)


def test_the_bound_on_areas_skips_pairs_without_changing_the_answer(monkeypatch):
    monkeypatch.setattr(module, "COLUMNS", 90)
    training = blobs(200, 16, 3)
    seen = []
    monkeypatch.setattr(module, "moved", lambda x, *how: (seen.append(len(x)), moved(x, *how))[1])
    assert best_match(training[50:51], training)[0].tolist() == [1.0]
    assert sum(seen) < 200 + 100  # all of them once for their areas, then not even half


def test_a_mask_of_another_area_wins_by_a_hair_though_the_bound_looks_at_its_block_last(monkeypatch):
    monkeypatch.setattr(module, "COLUMNS", 1)  # every training mask is a block
    masks = torch.zeros(3, 1, 120, dtype=torch.uint8)
    masks[0, 0, :100] = 1
    masks[1, 0, 5:105] = 1  # the same area, so it is tried first: 95 / 105
    masks[2, 0, :91] = 1  # inside the first, so it reaches its bound: 91 / 100
    best, index = best_match(masks[:1], masks[1:], shift=0, flip=False)
    assert (best.item(), index.item()) == (91 / 100, 1)


def test_a_copy_is_found_though_it_is_mirrored_and_shifted_and_only_within_reach():
    training = blobs(40, 16, 4)
    copies = torch.zeros_like(training)
    copies[:, :-1, 1:] = training.flip(-1)[:, 1:, :-1]  # up and to the right by one, cut at the border
    best, index = best_match(copies[5:], training)
    assert best.tolist() == [1.0] * 35
    assert (best_match(copies[5:], training, shift=0)[0] < 1).any()
    assert (best_match(copies[5:], training, flip=False)[0] < 1).any()
    # the row that is named is a match indeed, be it another mask than the one that was copied
    named = moved(training[index], 1, True).reshape(18, 35, 16, 16)
    assert torch.stack([iou(copies[5:], copy) for copy in named]).amax(0).tolist() == [1.0] * 35


def test_empty_masks_match_empty_masks_only():
    empty, some = torch.zeros(1, 6, 6), torch.ones(1, 6, 6)
    assert best_match(empty, torch.cat([some, empty]))[0].tolist() == [1.0]
    assert best_match(empty, torch.cat([some, empty]))[1].tolist() == [1]
    assert best_match(empty, some)[0].tolist() == best_match(some, empty)[0].tolist() == [0.0]


def test_the_summary_of_held_out_masks_beside_themselves_is_one_in_a_hundred():
    values = torch.linspace(0, 1, 1001)
    found = memorisation(values, values)
    assert found["median"] == pytest.approx(0.5)
    assert found["share_above"] == pytest.approx(0.01, abs=2e-3)
    assert memorisation(torch.ones(5), values)["share_above"] == 1.0
    assert memorisation(torch.ones(5), torch.ones(9))["share_above"] == 0.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="1 or more"):
        best_match(torch.zeros(0, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"N,H,W"):
        best_match(torch.zeros(1, 4, 4), torch.zeros(1, 5, 4))
    with pytest.raises(ValueError, match="shift is -1"):
        best_match(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), shift=-1)
    with pytest.raises(ValueError, match="one of each"):
        memorisation(torch.ones(0), torch.ones(2))
