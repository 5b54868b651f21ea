"""Generation around a fake module: its network is a closed form, its rounding depends on the batch size."""

import errno
import hashlib
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier, Event
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from generation import FakeModule, cfg_for, files, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.checks import ConfigError
from configs.data_cfg import DataCfg, FolderSource
from configs.generate_cfg import GenerateCfg
from configs.sampler_cfg import DDPMCfg, FlowCfg, ShortcutCfg
from data.fit import area_resize
from data.folder import load_folder
from samplers import SamplerMismatch
from scripts import generate_masks
from scripts.generate_masks import generate_to_folder, main, planned, read_prompts
from scripts.mask_files import Plan, output_folder, require_masks, slug, unique_slugs
from scripts.run import refuse_kindly
from tests.test_enlarge import filled

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("sampler", [ShortcutCfg(), DDPMCfg(timesteps=20, steps=8)], ids=["shortcut", "ddpm"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_one_seed_gives_the_same_bytes_at_any_batch_size(sampler, guidance, checkpoint, tmp_path):
    seen = []
    for size in (1, 2, 3, 10, 64):
        cfg = cfg_for(checkpoint, tmp_path / str(size), batch_size=size, guidance=guidance, steps=(1, 4))
        seen.append(files(generate_to_folder(FakeModule(sampler), cfg)))
    assert len(seen[0]) == 2 * 5 * 2
    assert all(other == seen[0] for other in seen)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (ShortcutCfg(), {"sampler": "restart", "guidance": 2.0, "guidance_from": 0.2}),
        (ShortcutCfg(), {"sampler": "ddim", "eta": 1.0, "shift": 2.0}),
        (FlowCfg(), {"sampler": "dpmpp", "guidance": 2.0, "cfg_zero": True, "zero_init": 0.25}),
        (FlowCfg(), {"sampler": "heun", "guidance": 2.0, "guidance_to": 0.5}),
        (DDPMCfg(timesteps=20, steps=8), {"sampler": "ddim", "eta": 0.7, "guidance": 3.0}),
    ],
    ids=str,
)
def test_options_change_the_masks_but_no_batch_size_does(sampler, options, checkpoint, tmp_path):
    def pixels(name: str, batch_size: int, **chosen: Any) -> dict[str, bytes]:
        cfg = cfg_for(checkpoint, tmp_path / name, batch_size=batch_size, steps=(4,), **chosen)
        out = generate_to_folder(FakeModule(sampler), cfg)
        assert all(row.items() >= chosen.items() for row in rows(out))
        return {name: np.asarray(Image.open(out / name)).tobytes() for name in files(out)}

    asked = pixels("1", 1, **options)
    assert pixels("3", 3, **options) == pixels("64", 64, **options) == asked
    for key in options.keys() - {"sampler"}:
        dropped = (key, "cfg_zero") if key == "guidance" else (key,)  # cfg_zero alone is refused
        assert pixels(f"without-{key}", 64, **{k: v for k, v in options.items() if not k.startswith(dropped)}) != asked


def test_mask_k_is_the_first_mask_of_seed_plus_k_and_of_any_company(checkpoint, tmp_path):
    sampler = DDPMCfg(timesteps=20, steps=8)
    many = generate_to_folder(FakeModule(sampler), cfg_for(checkpoint, tmp_path / "many", seed=7))
    one = generate_to_folder(
        FakeModule(sampler), cfg_for(checkpoint, tmp_path / "one", seed=10, num=1, prompt=("a giraffe",))
    )
    pixels = [np.asarray(Image.open(path)) for path in (many / "a-giraffe-0003.png", one / "a-giraffe-0000.png")]
    assert (pixels[0] == pixels[1]).all()
    assert len({row["seed"] for row in rows(many)}) == 5
    assert len(set(files(many).values())) == 10


def test_only_masks_that_rounding_could_change_are_drawn_again(checkpoint, tmp_path):
    module = FakeModule(ShortcutCfg())
    generate_to_folder(module, cfg_for(checkpoint, tmp_path / "doubt", batch_size=10, steps=(1,)))
    assert module.calls == [10] + [1] * 10
    module = FakeModule(ShortcutCfg())
    generate_to_folder(module, cfg_for(checkpoint, tmp_path / "clear", batch_size=10, steps=(1,), threshold=0.999))
    assert module.calls == [10]
    for steps, guidance, alone in ((1, 1.0, 0), (4, 1.0, 10), (1, 4.0, 10)):  # a pixel is 3e-4 from the threshold
        module, folder = FakeModule(ShortcutCfg()), tmp_path / f"{steps}-{guidance}"
        how = {"steps": (steps,), "guidance": guidance, "threshold": 0.5003}
        generate_to_folder(module, cfg_for(checkpoint, folder, batch_size=10, **how))
        assert module.calls == [10] + [1] * alone


def test_batches_are_drawn_side_by_side_and_the_files_are_those_of_one_after_the_other(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, both_here = generate_masks.draw_masks, Barrier(2)

    def at_two(*how: Any) -> Any:
        both_here.wait(timeout=60)
        return drawn(*how)

    cfg = partial(cfg_for, checkpoint, batch_size=5, steps=(1, 4))
    alone = files(generate_to_folder(FakeModule(ShortcutCfg()), cfg(tmp_path / "alone", batch_size=64)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(generate_masks, "draw_masks", at_two)
    assert files(generate_to_folder(FakeModule(ShortcutCfg()), cfg(tmp_path / "two"))) == alone


def test_threads_that_begin_after_a_generation_compute_with_as_many_as_before(checkpoint: str, tmp_path: Path) -> None:
    def seen() -> int:
        with ThreadPoolExecutor(1) as other:
            return other.submit(torch.get_num_threads).result()

    torch.set_num_threads(2)
    before = seen()
    generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "out", batch_size=5))
    assert seen() == before == 2


@pytest.mark.parametrize(("enlarge", "cell"), [(1, 64), (12, 96), (16, 128)])
def test_the_picture_shows_masks_as_large_as_they_are_within_limits(
    enlarge: int, cell: int, checkpoint: str, tmp_path: Path
) -> None:
    """Those of this module have 8 pixels."""
    cfg = partial(cfg_for, checkpoint, enlarge=enlarge)
    pictures = [
        (generate_to_folder(FakeModule(ShortcutCfg()), cfg(tmp_path / str(size), size=size)) / "grid.png").read_bytes()
        for size in (0, cell)
    ]
    assert pictures[0] == pictures[1]


def test_a_draw_stops_when_another_batch_cannot_be_finished(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, drawn, begun = FakeModule(FlowCfg()), generate_masks.draw_masks, Event()
    module.average.register_forward_pre_hook(lambda *_: begun.set())

    def fails_at_the_first(module: Any, plan: Plan, numbers: list[int], *how: Any) -> Any:
        if 0 not in numbers:
            return drawn(module, plan, numbers, *how)
        assert begun.wait(timeout=60)  # the other one is at work
        raise ConfigError("the disk is full")

    steps = 100_000
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(generate_masks, "draw_masks", fails_at_the_first)
    calls = []
    module.average.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ConfigError, match="the disk is full"):
        generate_to_folder(module, cfg_for(checkpoint, tmp_path / "out", batch_size=5, steps=(steps,)))
    assert 0 < len(calls) < steps
    assert not files(tmp_path / "out")


def test_the_manifest_says_how_each_file_was_made_and_reads_back_as_a_training_set(checkpoint, tmp_path):
    out = generate_to_folder(
        FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "out", prompt=("a cat", "élan 🦒"), steps=(1, 4))
    )
    manifest = rows(out)
    assert len(manifest) == 2 * 5 * 2
    assert manifest[0] == {
        "file_name": "a-cat-s01-0000.png", "text": "a cat", "seed": 0, "steps": 1, "times": None, "shift": 1.0,
        "sampler": "shortcut", "eta": None, "guidance": 1.0, "guidance_from": 0.0, "guidance_to": 1.0,
        "cfg_zero": False, "zero_init": 0.0, "threshold": 0.5, "precision": "fp32", "one_bit": False,
        "checkpoint": hashlib.sha256(b"weights").hexdigest(),
    }  # fmt: skip
    for row in manifest:
        image = Image.open(out / row["file_name"])
        assert (image.mode, image.size) == ("L", (8, 8))
        assert set(np.unique(np.asarray(image))) <= {0, 255}
        assert image.text["prompt"] == row["text"]
        assert json.loads(image.text["parameters"]) == row
    assert json.loads((out / "config.json").read_text())["steps"] == [1, 4]
    source = FolderSource(str(out))
    again = load_folder(str(out), "--data.source.train", source, DataCfg(source, image_size=8))
    assert sorted(again.prompts) == sorted(row["text"] for row in manifest)


def test_an_imagefolder_lists_every_mask_and_no_other_file(checkpoint, tmp_path):
    out = tmp_path / "out"
    generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, out, steps=(1, 4), imagefolder=True))
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert lines == [{key: row[key] for key in ("file_name", "text", "seed", "steps")} for row in rows(out)]
    assert {line["file_name"] for line in lines} == {path.name for path in out.glob("*.png")} - {"grid.png"}
    assert sorted(load_folder(str(out), "x", FolderSource(), DataCfg()).prompts) == sorted(row["text"] for row in lines)
    if find_spec("datasets"):  # large and optional
        from datasets import load_dataset

        read = load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
        assert sorted(read["text"]) == sorted(line["text"] for line in lines)
    generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, out, overwrite=True))
    assert not (out / "metadata.jsonl").exists()


def test_one_bit_files_and_colour_images(checkpoint, tmp_path):
    one_bit = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "bits", one_bit=True))
    grey = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "bytes"))
    for name in files(one_bit):
        image = Image.open(one_bit / name)
        assert image.mode == "1"
        assert (np.asarray(image) == (np.asarray(Image.open(grey / name)) > 0)).all()
    colour = generate_to_folder(FakeModule(ShortcutCfg(), channels=3), cfg_for(checkpoint, tmp_path / "rgb"))
    assert {Image.open(colour / name).mode for name in files(colour)} == {"RGB"}


def test_enlarged_files_are_the_same_masks_larger(checkpoint, tmp_path):
    small = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "small", one_bit=True))
    for batch_size in (1, 64):
        cfg = cfg_for(checkpoint, tmp_path / str(batch_size), enlarge=4, batch_size=batch_size)
        large = generate_to_folder(FakeModule(ShortcutCfg()), cfg)
    assert files(large) == files(tmp_path / "1")
    assert {row["enlarge"] for row in rows(large)} == {4}
    assert "enlarge" not in rows(small)[0]
    assert {Image.open(large / name).size for name in files(large)} == {(32, 32)}
    sources = [FolderSource(str(out)) for out in (small, large)]
    trained_on = [load_folder(str(s.train), "x", s, DataCfg(s, image_size=8)) for s in sources]
    assert (trained_on[0].images == trained_on[1].images).all()
    assert trained_on[0].prompts == trained_on[1].prompts
    with pytest.raises(ConfigError, match="has enlarge 4, and these settings have 2; give the settings"):
        generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, enlarge=2, resume=True))


def test_an_svg_shows_the_mask_and_says_what_it_is(checkpoint, tmp_path):
    asked = {"prompt": ("a cat <&> \"dog\"", "élan 🦒"), "svg": True}
    out = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "out", **asked))
    plain = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "plain"))
    assert not list(plain.glob("*.svg"))
    assert len(list(out.glob("*.svg"))) == len(rows(out)) == 10
    for row in rows(out):
        root = ElementTree.parse((out / row["file_name"]).with_suffix(".svg")).getroot()
        title, description, path = root
        assert root.get("viewBox") == "0 0 8 8"
        assert title.text == row["text"]
        assert json.loads(description.text) == row
        lines = [np.array(line.split(), float).reshape(-1, 2) for line in re.findall(r"M([\d. ]+)Z", path.get("d"))]
        mask = np.asarray(Image.open(out / row["file_name"])) // 255
        assert (area_resize(filled(lines, 8, 8, 16)[None], 8, 8)[0] != mask).sum() <= 2
        assert bool(lines) == mask.any()
    source = FolderSource(str(out))
    assert len(load_folder(str(out), "x", source, DataCfg(source, image_size=8))) == 10


def test_svg_files_are_whole_resumed_and_removed_with_their_masks(checkpoint, tmp_path):
    out, mine = tmp_path / "out", tmp_path / "out" / "a-cat-0000.svg"
    cfg = cfg_for(checkpoint, out, svg=True)
    generate_to_folder(FakeModule(ShortcutCfg()), cfg)
    whole = {path.name: path.read_bytes() for path in out.glob("*.svg")}
    for name in ("a-cat-0001", "a-giraffe-0003"):
        (out / f"{name}.png").unlink()
        (out / f"{name}.svg").unlink()
    (out / "a-cat-0002.svg").unlink()
    (out / "a-cat-0003.svg").write_bytes(b"")  # as after a loss of power
    (out / ".a-cat-0001.svg.part").write_bytes(b"<svg")
    generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, resume=True))
    assert {path.name: path.read_bytes() for path in out.glob("*.svg")} == whole
    assert not list(out.glob(".*.part"))
    with pytest.raises(ConfigError, match="has svg True, and these settings have None"):
        generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, svg=False, resume=True))
    generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, svg=False, overwrite=True))
    assert not list(out.glob("*.svg"))
    mine.write_text("mine")  # no generation wrote it
    generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, svg=False, overwrite=True))
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("times", [0, -1, 17])
def test_masks_are_enlarged_sixteen_times_at_most(times: int) -> None:
    with pytest.raises(ConfigError, match=f"enlarge is {times}, but it must be from 1 to 16"):
        GenerateCfg(prompt=("x",), enlarge=times)


def test_masks_are_enlarged_to_4096_pixels_at_most(checkpoint: str, tmp_path: Path) -> None:
    module = FakeModule(ShortcutCfg())
    module.cfg.data.image_size = 512
    planned(module, cfg_for(checkpoint, tmp_path / "a", enlarge=8))
    with pytest.raises(ConfigError, match="enlarge is 9, but it must be at most 8 for masks of 512 pixels"):
        planned(module, cfg_for(checkpoint, tmp_path / "a", enlarge=9))


def test_irregular_times_are_steps_too(checkpoint, tmp_path):
    regular = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "a", steps=(2,)))
    same = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "b", times="0,0.5,1"))
    other = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "c", times="0,0.1,0.3,1"))
    pixels = [[np.asarray(Image.open(out / name)) for name in sorted(files(out))] for out in (regular, same)]
    assert all((a == b).all() for a, b in zip(*pixels, strict=True))
    assert {row["steps"] for row in rows(other)} == {3}
    assert rows(other)[0]["times"] == [0, 0.1, 0.3, 1]


def test_a_folder_in_use_is_refused_and_overwriting_removes_only_what_its_manifest_lists(checkpoint, tmp_path):
    out = generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, tmp_path / "out"))
    (out / "mine.png").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="not empty"):
        generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, out))
    generate_to_folder(FakeModule(ShortcutCfg()), cfg_for(checkpoint, out, num=1, prompt=("a dog",), overwrite=True))
    assert list(files(out)) == ["a-dog-0000.png"]
    assert (out / "mine.png").read_bytes() == b"precious"
    assert output_folder(GenerateCfg(checkpoint, prompt=("x",))) == Path(checkpoint).parent / "masks-1"


def test_overwriting_and_resuming_replace_no_file_that_no_generation_wrote(checkpoint: str, tmp_path: Path) -> None:
    cfg = cfg_for(checkpoint, tmp_path / "out", imagefolder=True)
    out = generate_to_folder(FakeModule(ShortcutCfg()), cfg)
    generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, overwrite=True))  # its own files
    generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, resume=True))
    (out / "a-dog-0000.png").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"holds a-dog-0000\.png, a name that is to be written"):
        generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, prompt=("a dog",), overwrite=True))
    written = (out / "metadata.jsonl").read_text().replace('"text": "', '"text": "by hand: ')
    (out / "metadata.jsonl").write_text(written)
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match="or its captions were changed since"):
            generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, **how))
    assert (out / "metadata.jsonl").read_text() == written
    assert (out / "a-dog-0000.png").read_bytes() == b"precious"
    assert set(files(out)) >= {row["file_name"] for row in rows(out)}


def test_what_is_no_number_is_not_drawn(tiny_diffusion: Any, checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finite numbers: guidance is 1e\+30; ask for less"):
        generate_to_folder(tiny_diffusion, cfg_for(checkpoint, tmp_path / "out", steps=(4,), guidance=1e30))


def test_two_generations_without_a_name_never_share_a_folder(checkpoint, monkeypatch):
    """The second finds the same free number, and the first has made it in between."""
    cfg = GenerateCfg(checkpoint, prompt=("a cat",), num=2)
    first = generate_to_folder(FakeModule(ShortcutCfg()), cfg)
    found = iter([first, output_folder(cfg)])
    monkeypatch.setattr(generate_masks, "output_folder", lambda cfg: next(found))
    before = files(first)
    second = generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, seed=5))
    assert (first.name, second.name) == ("masks-1", "masks-2")
    assert files(first) == before
    assert len(files(second)) == 2


def test_a_link_to_nowhere_in_the_place_of_runs_is_an_error_not_an_endless_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to("nowhere")
    cfg = GenerateCfg("icons", prompt=("a cat",))
    found = iter([output_folder(cfg)])
    monkeypatch.setattr(generate_masks, "output_folder", lambda cfg: next(found))
    with pytest.raises(FileExistsError, match="runs"):
        generate_to_folder(FakeModule(ShortcutCfg()), cfg)


@pytest.mark.parametrize("name", ["config.json", "grid.png", "metadata.jsonl"])
def test_overwriting_replaces_no_file_of_a_folder_that_never_held_a_generation(
    name: str, checkpoint: str, tmp_path: Path
) -> None:
    cfg = cfg_for(checkpoint, tmp_path / "out", overwrite=True)
    Path(cfg.out).mkdir()
    (tmp_path / "out" / name).write_text("precious")
    with pytest.raises(FileExistsError, match=f"no generation, but a {name} of something else, .*: name another"):
        generate_to_folder(FakeModule(ShortcutCfg()), cfg)
    assert [path.name for path in Path(cfg.out).iterdir()] == [name]
    assert (tmp_path / "out" / name).read_text() == "precious"


def test_overwriting_that_is_stopped_early_can_be_done_again(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = cfg_for(checkpoint, tmp_path / "out", overwrite=True)
    out = generate_to_folder(FakeModule(ShortcutCfg()), cfg)

    def stopped(plan: Plan) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Plan, "lines", stopped)
    with pytest.raises(KeyboardInterrupt):
        generate_to_folder(FakeModule(ShortcutCfg()), cfg)
    monkeypatch.undo()
    generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, num=1))
    assert len(files(out)) == len(rows(out)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampler": "euler"}, {"eta": 0.5}, {"num": 0}, {"steps": (0,)}, {"steps": (1, 1)},
        {"times": "0,0.5"}, {"times": "0,1", "steps": (1,)}, {"times": "0,x,1"}, {"threshold": 1.0}, {"seed": -1},
        {"cfg_zero": True}, {"zero_init": 0.1}, {"shift": 0.0}, {"shift": 2.0, "times": "0,1"}, {"guidance_from": 1.0},
        {"zero_init": 1.0}, {"guidance_to": 1.5}, {"guidance": float("nan")}, {"prompt": ()}, {"size": -1},
        {"batch_size": 0}, {"checkpoint": " "}, {"guidance_from": 0.2}, {"guidance_to": 0.8}, {"strength": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_work_is_refused_before_a_file_is_written(wrong, checkpoint, tmp_path):
    fields = {"checkpoint": checkpoint, "prompt": ("a cat",), "out": str(tmp_path / "out"), **wrong}
    with pytest.raises((ConfigError, SamplerMismatch), match=f"{next(iter(wrong))}|drive"):
        generate_to_folder(FakeModule(ShortcutCfg()), GenerateCfg(**fields))
    assert not (tmp_path / "out").exists()


def test_prompts_come_from_the_line_and_the_file_each_once(checkpoint, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cow\r\n\r\n  a   cat \n漢字\n".encode())
    cfg = GenerateCfg(checkpoint, prompt=("a cat", "", "\udc80x"), prompts_file=str(path))
    assert read_prompts(cfg) == ["a cat", "", "?x", "a cow", "漢字"]


@given(st.lists(st.text(max_size=80), min_size=1, max_size=8, unique=True))
@settings(max_examples=200, deadline=None)
def test_slugs_of_any_text_are_distinct_safe_names_inside_the_folder(texts):
    out = Path("/out")
    slugs = unique_slugs(texts)
    assert len(set(slugs)) == len(texts)
    for name in [*slugs, *map(slug, texts)]:
        assert re.fullmatch("[a-z0-9-]{1,48}", name)
        assert (out / f"{name}-0000.png").resolve().parent == out.resolve()


def test_prompts_with_one_slug_get_files_of_their_own():
    prompts = ["a cat", "A cat!", "a cat 2", "a  CAT", "漢"]
    assert unique_slugs(prompts) == ["a-cat", "a-cat-2", "a-cat-2-2", "a-cat-3", "mask"]


@pytest.mark.parametrize("command", ["generate_masks", "evaluate"])
def test_help_is_quick_and_imports_no_torch(command):
    code = (
        f"import sys\nfrom scripts.{command} import main\ntry:\n main(['--help'])\n"
        "except SystemExit as stop:\n assert not stop.code\n"
        "assert not {'torch', 'numpy', 'lightning', 'PIL'} & set(sys.modules)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout
    assert "--guidance" in done.stdout
    assert time.perf_counter() - started < 5  # well under a second on an idle machine


def test_a_disk_that_fills_up_is_a_failure_of_the_moment(checkpoint, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cfg = GenerateCfg(checkpoint, prompt=("a cat",), num=3, out=str(tmp_path / "out"))
    module = FakeModule(ShortcutCfg())
    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        with pytest.raises(SystemExit) as stop, refuse_kindly("generate_masks"):
            generate_to_folder(module, cfg)
    assert stop.value.code == 1
    assert "the masks so far are whole; mend that and go on with --resume True" in capsys.readouterr().err
    generate_to_folder(module, replace(cfg, resume=True))
    assert len(files(tmp_path / "out")) == 3


def test_a_prompt_without_its_option_is_told_where_it_goes(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["a heart"])
    assert stop.value.code == 2
    assert "'a heart' is no option; a prompt goes after one: --prompt 'a heart'" in capsys.readouterr().err


def test_a_typo_gets_the_near_name(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--checkpoint", "x", "--promt", "a cat"])
    assert stop.value.code == 2
    assert "--prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--prompt", "x"], "no such checkpoint"),
        (["--prompts-file", "nowhere.txt"], "no such file"),
        (["--prompt", "x", "--num", "0"], "num is 0"),
        ([], "nothing to draw"),
    ],
)
def test_a_mistake_ends_in_one_sentence(args, said, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["--checkpoint", str(tmp_path / "missing.ckpt"), *args])
    assert stop.value.code == 2
    error = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert said in error
    assert "Traceback" not in error


def test_a_share_of_steps_that_holds_no_whole_step_is_refused(checkpoint: str, tmp_path: Path) -> None:
    """CFG-Zero*'s zero_init would change nothing, and the manifest would say that it had."""
    how: dict[str, Any] = {"sampler": "heun", "guidance": 2.0, "zero_init": 0.04}
    module = FakeModule(FlowCfg())
    with pytest.raises(ConfigError, match=r"first of 16 steps is a larger share: ask for 0\.063 or more, or for 25 st"):
        planned(module, cfg_for(checkpoint, tmp_path / "a", **how))
    for enough in ({"zero_init": 0.063}, {"steps": (25,)}, {"steps": (4, 25)}):
        planned(module, cfg_for(checkpoint, tmp_path / "a", **how | enough))


HEUN: dict[str, Any] = {"sampler": "heun", "steps": (4,)}
BAND: dict[str, Any] = {"guidance": 2.0, "guidance_from": 0.3, "guidance_to": 0.48}
FLOW, JUMPS, HELD = FlowCfg(), ShortcutCfg(), ShortcutCfg(train_guidance=2.0)


@pytest.mark.parametrize(("trained", "how", "said"), [
    (FLOW, {**HEUN, **BAND}, r"guidance_from is 0\.3 and guidance_to is 0\.48, but no step .* begins at 0\.5, or ask"),
    (JUMPS, {"steps": (1, 2, 4), **BAND}, "no step begins between them, .* begins at 0.5, or ask for more steps"),
    (FLOW, {"times": "0,0.2,0.6,1", **BAND}, r"no step begins between them, .* begins at 0\.2,"),
    (FLOW, {"steps": (10,), "guidance": 2.0, "guidance_to": 0.2, "zero_init": 0.2}, r"which begins at 0\.2,"),
    (JUMPS, {"steps": (1,), "shift": 3.0}, "shift is 3, but a single step has no times between noise and mask"),
    (FLOW, {**HEUN, "cfg_zero": True}, "cfg_zero is on, but it corrects guidance, which comes to 1 in every step"),
    (FLOW, {**HEUN, "cfg_zero": True, "zero_init": 0.25}, "cfg_zero is on, .*: ask for more guidance, such as 2"),
    (HELD, {**HEUN, "cfg_zero": True, "guidance": 0.5}, "cfg_zero is on, but it corrects guidance, which comes to 1"),
])  # fmt: skip
def test_an_option_that_would_change_nothing_is_refused(
    trained: Any, how: dict[str, Any], said: str, checkpoint: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(FakeModule(trained), cfg_for(checkpoint, tmp_path / "a", **how))


@pytest.mark.parametrize(("trained", "how"), [
    (FLOW, {**HEUN, **BAND, "guidance_to": 0.51}), (FLOW, {**HEUN, **BAND, "shift": 0.5}),
    (JUMPS, {"steps": (1, 3), **BAND}), (FLOW, {"times": "0,0.3,1", **BAND}),
    (JUMPS, {"steps": (1,), "guidance": 2.0, "guidance_to": 0.1}), (JUMPS, {"steps": (1, 2), "shift": 3.0}),
    (FLOW, {**HEUN, "cfg_zero": True, "guidance": 0.0}), (HELD, {**HEUN, "cfg_zero": True}),
    (HELD, {**HEUN, "cfg_zero": True, **BAND, "guidance_to": 0.51}), (FLOW, {**HEUN, "zero_init": 0.25}),
    (FLOW, {**HEUN, "cfg_zero": True, "guidance": 2.0, "guidance_from": 0.5, "negative_prompt": "a dog"}),
])  # fmt: skip
def test_an_option_that_changes_a_mask_at_one_step_count_is_not(
    trained: Any, how: dict[str, Any], checkpoint: str, tmp_path: Path
) -> None:
    planned(FakeModule(trained), cfg_for(checkpoint, tmp_path / "a", **how))


def test_options_of_masks_are_refused_for_a_model_of_ordinary_images() -> None:
    for cfg, said in (
        (GenerateCfg(prompt=("x",), threshold=0.4), "threshold is 0.4, but this model draws ordinary .* at 0.5"),
        (GenerateCfg(prompt=("x",), one_bit=True), "one_bit is True, but this model draws ordinary .* at False"),
        (GenerateCfg(prompt=("x",), svg=True), "svg is True, but this model draws ordinary .* at False"),
        (GenerateCfg(prompt=("x",), enlarge=2), "enlarge is 2, but this model draws ordinary .* at 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            require_masks(cfg, 3)
        require_masks(cfg, 1)
    require_masks(GenerateCfg(prompt=("x",)), 3)


def test_every_seed_of_a_generation_can_be_given_again() -> None:
    """PyTorch's generators take 2**32 for 0."""
    last = 2**32 - 1
    with pytest.raises(ConfigError, match=r"seed \+ num is 4294967297, but it must be at most 4294967296"):
        GenerateCfg(prompt=("x",), seed=last, num=2)
    assert GenerateCfg(prompt=("x",), seed=last - 4, num=5).seed == last - 4
    ways: list[dict[str, Any]] = [{"to_prompt": "y"}, {"to_seed": last}]
    for way in ways:
        assert GenerateCfg(prompt=("x",), seed=last, num=5, **way).on_a_way  # all of them have the first seed


def test_files_name_the_weights_that_drew_them(checkpoint: str, tmp_path: Path) -> None:
    """A training may have put others in their place since they were read."""
    module: Any = FakeModule(FlowCfg())
    plan, _ = planned(module, cfg_for(checkpoint, tmp_path / "a"))
    module.sha256 = "of what was read"
    again, _ = planned(module, cfg_for(str(tmp_path / "gone.ckpt"), tmp_path / "a"))
    assert len(plan.shared["checkpoint"]) == 64
    assert again.shared["checkpoint"] == "of what was read"
