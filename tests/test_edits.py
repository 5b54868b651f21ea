"""A given mask as a condition, ways between prompts and seeds, negative prompts: what the command writes."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation import cfg_for, files, rows
from PIL import Image

from configs.checks import ConfigError
from data.masks import DataError
from diffusion import DiffusionModule
from samplers.between import noise_between
from samplers.generates import Edit
from scripts.generate_masks import generate_to_folder, planned
from scripts.mask_files import Plan
from scripts.seeded import blended, streams


@pytest.fixture
def listening(tiny_diffusion: DiffusionModule) -> DiffusionModule:
    """A network that is not trained either, but hears its prompts: no part of it is switched off."""
    torch.manual_seed(3)
    for weight in tiny_diffusion.average.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    return tiny_diffusion


def drawn(out: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(Image.open(out / name)) > 0 for name in sorted(files(out))}


@pytest.fixture
def given_mask(tmp_path: Path) -> tuple[str, np.ndarray]:
    """A file with a mask of 32x32, and its pixels."""
    mask = np.random.default_rng(0).random((32, 32)) < 0.4
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "given.png")
    return str(tmp_path / "given.png"), mask


@pytest.mark.parametrize(("steps", "strength", "sampler"), [
    (1, 1.0, ""), (1, 0.5, ""), (3, 0.8, ""), (128, 1.0, ""), (4, 1.0, "restart"), (3, 0.6, "dpmpp"), (2, 1.0, "ddpm"),
])
def test_the_kept_region_is_the_given_mask_bit_for_bit(
    steps: int, strength: float, sampler: str, tiny_diffusion: DiffusionModule, checkpoint: str,
    given_mask: tuple[str, np.ndarray], tmp_path: Path,
) -> None:
    path, mask = given_mask
    region = np.zeros((32, 32), bool)
    region[5:32, 3:17] = True  # its edges lie inside of cells of the latent
    for threshold in (0.01, 0.99)[: 1 if steps > 100 else 2]:
        cfg = cfg_for(
            checkpoint, tmp_path / str(threshold), prompt=("a cat",), num=1, steps=(steps,), sampler=sampler,
            init_mask=path, keep="3,5,17,32", strength=strength, threshold=threshold,
        )
        for pixels in drawn(generate_to_folder(tiny_diffusion, cfg)).values():
            assert (pixels[region] == mask[region]).all()
            assert (pixels[~region] != mask[~region]).any()


def test_a_cell_of_the_latent_is_kept_where_all_of_its_pixels_are() -> None:
    keep = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.9
    cells = Edit(torch.zeros(1, 16, 16), 1.0, keep).cells(4)
    expected = [[bool(keep[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].all()) for j in range(4)] for i in range(4)]
    assert cells is not None
    assert cells.tolist() == expected
    assert {True, False} == set(cells.flatten().tolist())


def test_strength_goes_from_the_decoded_mask_to_a_generation_without_it(tiny_diffusion: DiffusionModule) -> None:
    image = (torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    noise = torch.randn(2, *tiny_diffusion.latent_shape, generator=torch.Generator().manual_seed(1))

    def generate(edit: Edit | None) -> torch.Tensor:
        return tiny_diffusion.generate(["a cat", "a dog"], noise, steps=3, edit=edit)

    assert torch.equal(generate(Edit(image, 1.0)), generate(None))
    stage_1 = tiny_diffusion.autoencoder
    decoded = stage_1.to_pixels(stage_1.to_latent(image[None])).sigmoid()
    torch.testing.assert_close(generate(Edit(image, 1e-6)), decoded.expand(2, -1, -1, -1), rtol=0, atol=1e-3)


def test_files_say_what_they_were_made_from_at_any_batch_size(
    tiny_diffusion: DiffusionModule, checkpoint: str, given_mask: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    path, mask = given_mask
    Image.fromarray(np.tri(32, dtype=np.uint8)).save(tmp_path / "keep.png")
    how: dict[str, Any] = {
        "steps": (2,), "init_mask": path, "keep": str(tmp_path / "keep.png"), "strength": 0.6, "guidance": 2.0,
        "negative_prompt": " a  dog", "to_prompt": "a bear", "to_seed": 9,
    }
    one, many = (generate_to_folder(tiny_diffusion, cfg_for(checkpoint, tmp_path / str(n), batch_size=n, **how))
                 for n in (1, 64))  # fmt: skip
    assert files(one) == files(many)
    digest = {name: hashlib.sha256((tmp_path / f"{name}.png").read_bytes()).hexdigest() for name in ("given", "keep")}
    expected = {
        "init_mask": digest["given"], "keep": digest["keep"], "strength": 0.6, "negative_prompt": "a dog",
        "to_prompt": "a bear", "to_seed": 9, "seed": 0, "guidance": 2.0,
    }
    for k, row in enumerate(rows(one)[:5]):
        assert row.items() >= {**expected, "blend": k / 4}.items()
        assert json.loads(Image.open(one / row["file_name"]).text["parameters"]) == row
    for pixels in drawn(one).values():
        assert (pixels == mask)[np.tri(32, dtype=bool)].all()


def test_a_way_begins_and_ends_in_the_masks_of_its_prompts_and_seeds(
    listening: DiffusionModule, checkpoint: str, tmp_path: Path
) -> None:
    def pixels(name: str, **how: Any) -> list[np.ndarray]:
        cfg = cfg_for(checkpoint, tmp_path / name, steps=(2,), guidance=3.0, **how)
        return list(drawn(generate_to_folder(listening, cfg)).values())

    way = pixels("way", prompt=("a cat",), num=3, to_prompt="an elephant", to_seed=7)
    ends = [pixels("a", prompt=("a cat",), num=1), pixels("b", prompt=("an elephant",), num=1, seed=7)]
    for mask, (end,) in zip((way[0], way[2]), ends, strict=True):
        assert (mask == end).all()
        assert (way[1] != end).any()
    words = pixels("words", prompt=("a cat",), num=3, to_prompt="an elephant")
    assert (words[0] == ends[0][0]).all()
    assert (words[2] == pixels("c", prompt=("an elephant",), num=1)[0]).all()
    assert (words[2] != words[0]).any()


def test_a_way_to_the_same_seed_stays_at_its_noise() -> None:
    """The sum of a stream and itself would be up to sqrt(2) times as large as noise is."""
    like, blends = torch.empty(5, 4, 8, 8), [k / 4 for k in range(5)]
    assert torch.equal(blended([7] * 5, 7, blends)(like), streams([7] * 5)(like))
    own, far = streams([7, 8, 7, 8, 9])(like), streams([7] * 5)(like)
    weight = torch.tensor([0, 0.25, 0, 0.75, 1], dtype=torch.float64)
    assert torch.equal(blended([7, 8, 7, 8, 9], 7, blends)(like), noise_between(own, far, weight))


def test_a_mask_on_a_way_has_the_text_of_the_nearer_prompt(
    tiny_diffusion: DiffusionModule, checkpoint: str, tmp_path: Path
) -> None:
    """Read back as a training set, it would teach the wrong caption."""
    how: dict[str, Any] = {"prompt": ("a cat",), "num": 3, "steps": (1,), "to_prompt": "a dog", "imagefolder": True}
    cfg = cfg_for(checkpoint, tmp_path / "way", **how)
    out = generate_to_folder(tiny_diffusion, cfg)
    assert [row["text"] for row in rows(out)] == ["a cat", "a cat", "a dog"]
    assert {(row["from_prompt"], row["to_prompt"]) for row in rows(out)} == {("a cat", "a dog")}
    assert [Image.open(out / row["file_name"]).text["prompt"] for row in rows(out)] == ["a cat", "a cat", "a dog"]
    listed = [json.loads(line)["text"] for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert listed == ["a cat", "a cat", "a dog"]

    before = files(out)
    (out / rows(out)[2]["file_name"]).unlink()
    assert files(generate_to_folder(tiny_diffusion, replace(cfg, resume=True))) == before
    with pytest.raises(ConfigError, match="to_prompt 'a dog', and these settings have 'a cow'"):
        generate_to_folder(tiny_diffusion, replace(cfg, resume=True, to_prompt="a cow"))

    seeds = Plan(["a cat"], ["a-cat"], 3, 0, [1], {"to_seed": 7}, on_a_way=True)
    assert [seeds.about(k, 1)["text"] for k in range(3)] == ["a cat"] * 3
    assert not any("from_prompt" in seeds.about(k, 1) for k in range(3))


def test_a_negative_prompt_changes_masks_unless_it_is_blank(
    listening: DiffusionModule, checkpoint: str, tmp_path: Path
) -> None:
    def pixels(**how: Any) -> np.ndarray:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        return np.stack(list(drawn(generate_to_folder(
            listening, cfg_for(checkpoint, out, steps=(2,), guidance=3.0, **how)
        )).values()))  # fmt: skip

    plain = pixels()
    assert (pixels(negative_prompt="  ") == plain).all()
    assert (pixels(negative_prompt="an elephant") != plain).any()


def test_files_of_other_sizes_are_fitted_as_training_data_is(
    tiny_diffusion: DiffusionModule, checkpoint: str, tmp_path: Path
) -> None:
    mask = np.kron(np.random.default_rng(0).random((16, 32)) < 0.5, np.ones((4, 4))) > 0  # 64 high, 128 wide
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "wide.png")
    cfg = cfg_for(checkpoint, tmp_path / "out", init_mask=str(tmp_path / "wide.png"), keep="0,0,64,64", num=1)
    expected = np.zeros((32, 32), bool)
    expected[8:24] = mask[::4, ::4]  # a quarter of the size, in the middle of a square
    for pixels in drawn(generate_to_folder(tiny_diffusion, cfg)).values():
        assert (pixels == expected)[8:24, :16].all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"keep": "0,0,8,8"}, "keep is '0,0,8,8', but nothing is given of which to keep it"),
        ({"init_mask": "given.png", "keep": "0,0,40,8"}, r"keep is the box \[0, 0, 40, 8\], but the mask has 32x32"),
        ({"init_mask": "given.png", "keep": "8,0,8,8"}, "keep is '8,0,8,8', but it must be a file, or left,top"),
        ({"init_mask": "given.png", "keep": "-1,0,8,8"}, "keep is '-1,0,8,8', but it must be a file, or left,top"),
        ({"init_mask": "given.png", "keep": "1,2,3"}, "keep is '1,2,3', but it must be a file, or left,top"),
        ({"init_mask": "given.png", "keep": "0,0,32,32"}, "keep covers the whole mask"),
        ({"init_mask": "given.png", "keep": "empty.png"}, "keep covers no pixel"),
        ({"init_mask": "given.png", "keep": "small.png"}, "keep is 8x8 pixels, but the mask .* is 32x32"),
        ({"init_mask": "given.png", "keep": "nowhere.png"}, "nowhere.png is not a file"),
        ({"init_mask": "nowhere.png"}, "nowhere.png is not a file"),
        ({"init_mask": "text.png"}, "text.png cannot be read as an image"),
        ({"init_mask": "thin.png"}, "init_mask has lines thinner than a pixel of the 32"),
        ({"init_mask": "given.png", "strength": 0.0}, "strength is 0.0, but it must be above 0"),
        ({"init_mask": "given.png", "strength": 1.1}, "strength is 1.1, but it must be above 0 and at most 1"),
        ({"init_mask": "given.png", "zero_init": 0.1, "sampler": "heun"}, "zero_init leaves out steps"),
        ({"to_prompt": "a dog", "num": 1}, "num is 1, but it must be at least 2"),
        ({"to_seed": -1}, "to_seed is -1, but it must be from 0"),
        ({"negative_prompt": "a dog"}, "guidance is 1.0, but it must be above 1"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_in_one_sentence(
    wrong: dict[str, Any], said: str, tiny_diffusion: DiffusionModule, checkpoint: str,
    given_mask: tuple[str, np.ndarray], tmp_path: Path,
) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "empty.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image")
    thin = np.zeros((512, 512), np.uint8)
    thin[100], thin[300] = 255, 255
    Image.fromarray(thin).save(tmp_path / "thin.png")
    wrong = {key: str(tmp_path / value) if str(value).endswith(".png") else value for key, value in wrong.items()}
    with pytest.raises((ConfigError, DataError), match=said):
        planned(tiny_diffusion, cfg_for(checkpoint, tmp_path / "out", **wrong))
