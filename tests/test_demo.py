"""The page: what it asks for, what it shows and hands out, and its use in a real browser."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from generation import FakeModule, files, rows
from PIL import Image

from configs.checks import ConfigError
from configs.demo_cfg import DemoCfg
from configs.sampler_cfg import DDPMCfg, ShortcutCfg
from data.fit import fit_masks
from scripts.demo_draw import as_html, draw_in_turn, request, summary, write_files
from scripts.generate_masks import generate_to_folder

ROOT = Path(__file__).parents[1]
FIELDS: dict[str, Any] = {"num": 5, "steps": 2, "guidance": 2.0, "seed": 3}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)


def asked(checkpoint: str, prompt: str = "a cat", **fields: Any) -> Any:
    return request(DemoCfg(checkpoint), prompt, **{**FIELDS, **fields})


@pytest.mark.parametrize("sampler", [ShortcutCfg(), DDPMCfg(timesteps=20, steps=8)], ids=["shortcut", "ddpm"])
def test_masks_come_a_few_at_a_time_and_are_those_of_the_command(
    sampler: Any, checkpoint: str, tmp_path: Path
) -> None:
    counts, cfg = [], asked(checkpoint, num=40)
    for result in draw_in_turn(FakeModule(sampler), cfg):
        counts.append(len(result.pixels))
        assert len(result.seconds) == len(result.pixels)
    assert counts[:2] == [0, 1]
    assert counts == sorted(set(counts))
    assert len(counts) > 3
    grid, archive = write_files(result, tmp_path)
    command = generate_to_folder(FakeModule(sampler), replace(cfg, out=str(tmp_path / "command")))
    with zipfile.ZipFile(archive) as file:
        assert {name: file.read(name) for name in file.namelist() if "-0" in name} == files(command)
        listed = [json.loads(line) for line in file.read("manifest.jsonl").decode().splitlines()]
        assert file.read("grid.png") == grid.read_bytes()
    assert listed == rows(command)


def test_larger_masks_of_the_page_are_those_of_the_command_and_come_back_as_they_were_drawn(
    checkpoint: str, tmp_path: Path
) -> None:
    cfg = asked(checkpoint, num=3, enlarge="4")
    *_, result = draw_in_turn(FakeModule(ShortcutCfg()), cfg)
    *_, drawn = draw_in_turn(FakeModule(ShortcutCfg()), asked(checkpoint, num=3))
    command = files(generate_to_folder(FakeModule(ShortcutCfg()), replace(cfg, out=str(tmp_path / "command"))))
    assert {result.about(n)["file_name"]: result.png(n) for n in range(3)} == command
    assert "class='masks'" in as_html(result)
    result.masks = [replace(mask, pixels=mask.pixels.repeat(4, 0).repeat(4, 1)) for mask in result.masks]
    assert "class='masks large'" in as_html(result)  # shown smaller than they are
    result.masks = [replace(mask, pixels=mask.pixels[::4, ::4]) for mask in result.masks]
    for large, small in zip(result.pixels, drawn.pixels, strict=True):
        assert large.shape == (32, 32)
        assert (fit_masks(large[None] // 255, 8)[0] == small // 255).all()


def test_text_of_visitors_is_shown_as_text(checkpoint: str) -> None:
    prompt = "<script>alert('x')</script> \"&"
    *_, result = draw_in_turn(FakeModule(ShortcutCfg()), asked(checkpoint, prompt))
    for page in (as_html(result), summary(result, "<b>model")):
        assert "<script" not in page
        assert "<b>model" not in page
    assert as_html(result).count("<img") == 5
    assert "&lt;script&gt;" in summary(result, "m")


def test_a_picture_holds_its_prompt_and_settings_and_frames_stand_for_what_is_to_come(checkpoint: str) -> None:
    first, *_, last = [
        (len(result.pixels), as_html(result)) for result in draw_in_turn(FakeModule(ShortcutCfg()), asked(checkpoint))
    ]
    assert (first[0], first[1].count("waiting"), first[1].count("<img")) == (0, 5, 0)
    assert (last[0], last[1].count("waiting"), last[1].count("<img")) == (5, 0, 5)
    content = re.findall(r"href='data:image/png;base64,([^']+)'", last[1])[4]
    about = json.loads(Image.open(BytesIO(base64.b64decode(content))).text["parameters"])
    assert about.items() >= {"text": "a cat", "seed": 7, "steps": 2, "guidance": 2.0}.items()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompt": "  "}, "there is no prompt"),
        ({"prompt": "x" * 201}, "the prompt has 201 letters, but this page takes 200"),
        ({"negative": "x" * 201}, "the negative prompt has 201 letters"),
        ({"num": 65}, "the number of masks is 65, but this page draws 1 to 64"),
        ({"num": 0}, "the number of masks is 0"),
        ({"num": None}, "number of masks is empty, but it must be a number"),
        ({"steps": 129}, "the number of steps is 129, but this page takes 1 to 128"),
        ({"steps": 0}, "steps is"),
        ({"steps": 1.5}, "steps is 1.5, but it must be a whole number"),
        ({"times": "0," + ",".join(f"{n / 200:.3f}" for n in range(1, 200)) + ",1"}, "times is longer"),
        ({"times": "0," + ",".join(f"{n / 131:.3f}"[1:] for n in range(1, 131)) + ",1"}, "number of steps is 131"),
        ({"times": "0,x,1"}, "times is '0,x,1', but it must be rising numbers"),
        ({"times": "1,0"}, "times is '1,0'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "a"}, "seed is 'a', but it must be a number"),
        ({"seed": float("inf")}, "seed is inf"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": 1.0, "negative": "a dog"}, "above 1"),
        ({"enlarge": 0}, "enlarge is 0, but it must be from 1 to 16"),
        ({"enlarge": "x"}, "size is 'x', but it must be a number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_page_does_not_take_is_said_in_one_sentence(
    wrong: dict[str, Any], said: str, checkpoint: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        asked(checkpoint, **wrong)


def test_without_gradio_the_command_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['gradio'] = None; from scripts.demo import main; main(['--browser', 'False'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("run .venv/bin/python -m pip install -r scripts/demo-requirements.txt")
    assert "Traceback" not in done.stderr


def test_the_page_is_for_this_machine_alone_unless_asked() -> None:
    cfg = DemoCfg()
    assert (cfg.host, cfg.share) == ("127.0.0.1", False)


FAKE_PAGE = """
import os, signal, time
from pathlib import Path
from scripts import demo

class Page:
    def launch(self):
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        (folder / "of_a_visitor").mkdir()
        (folder / "of_a_visitor" / "drawing.png").touch()
        print(f"mode {folder.stat().st_mode & 0o777:o}", flush=True)
        END

    def close(self, verbose):
        print("closed")

demo.prepare = lambda cfg: (Page(), {})
demo.main(["--browser", "False"])
"""


def fake_page(end: str, folder: Path, given: str = "") -> tuple[int, str]:
    """Exit code and output of the command around a page that writes a drawing, then does what ``end`` says."""
    env = os.environ | {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": given}
    code = [sys.executable, "-c", FAKE_PAGE.replace("END", end)]
    done = subprocess.run(code, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)", 143), ("raise KeyboardInterrupt", 130),
        ("raise OSError('in use')", 2), ("pass", 0),
    ],
    ids=["SIGTERM", "Ctrl-C", "failure", "end"],
)  # fmt: skip
def test_what_visitors_draw_lies_in_a_folder_of_one_user_that_goes_with_the_page(
    end: str, code: int, tmp_path: Path
) -> None:
    found, said = fake_page(end, tmp_path)
    assert found == code
    assert "mode 700\n" in said
    assert "closed" in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_the_user_names_for_drawings_is_taken_and_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert fake_page("os.kill(os.getpid(), signal.SIGTERM)", tmp_path, str(tmp_path / "mine"))[0] == 143
    assert [path.name for path in tmp_path.rglob("*.png")] == ["drawing.png"]


# In a browser


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The real command with the model that comes with the project: its address, and its folder of temporary files."""
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install -r scripts/demo-requirements.txt")
    folder = tmp_path_factory.mktemp("temporary")
    env = os.environ | {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": ""}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = ["--most-masks", "8", "--most-letters", "40", "--browser", "False"]
    command = [sys.executable, "-m", "scripts.demo", "--port", str(port), *limits]
    process = subprocess.Popen(command, cwd=ROOT, env=env)
    try:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, "the page ended"
                assert time.monotonic() < until, "the page did not start"
                time.sleep(0.5)
        yield url, folder
    finally:
        process.terminate()
        process.wait(20)
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def address(served: tuple[str, Path]) -> str:
    pytest.importorskip("playwright", reason="the browser is driven by Playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (apt-get install chromium)")
    return served[0]


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1180, "height": 860}, accept_downloads=True)
        page.set_default_timeout(120_000)  # a drawing area without a GPU takes seconds, on a busy machine more
        hosts, errors = set(), []
        page.on("request", lambda request: hosts.add(request.url) if request.url.startswith("http") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#draw")
        yield page
        assert all(url.startswith(address) for url in hosts), hosts  # nobody else is asked for anything
        assert not errors
        browser.close()


def fill(page: Any, field: str, value: Any) -> None:
    kind = "input[type=number]" if isinstance(value, int | float) else "textarea, input"
    box = page.locator(f"#{field}").locator(kind).first
    box.fill(str(value))
    box.press("Tab")


def press(page: Any, button: str, masks: int) -> list[np.ndarray]:
    """Press a button, wait for the result's files, and return the masks of its ZIP."""
    page.evaluate("document.querySelector('.masks')?.remove()")
    page.click(f"button#{button}")
    page.wait_for_function(f"document.querySelectorAll('.masks img').length == {masks}")
    page.wait_for_selector("#zip:not([disabled])")
    with page.expect_download() as download:
        page.click("#zip")
    with zipfile.ZipFile(download.value.path()) as file:
        listed = [json.loads(line) for line in file.read("manifest.jsonl").decode().splitlines()]
        assert len(listed) == masks
        page.listed = listed
        return [np.asarray(Image.open(BytesIO(file.read(row["file_name"])))) > 0 for row in listed]


def settled(page: Any, selector: str) -> dict[str, float]:
    """Where an element is on the page, once it has been there for a second and a half."""
    element, boxes = page.locator(selector).first, []
    element.scroll_into_view_if_needed()
    while len(boxes) < 6 or any(box != boxes[-1] for box in boxes[-6:]):
        assert len(boxes) < 200, f"{selector} does not come to rest"
        boxes.append(element.bounding_box())
        page.wait_for_timeout(300)
    return dict(boxes[-1])


def stroke(page: Any, at: list[tuple[float, float]], **options: Any) -> None:
    """Draw a line with the mouse."""
    page.mouse.move(*at[0])
    page.mouse.down()
    for x, y in at:
        page.mouse.move(x, y, **options)
    page.mouse.up()
    page.wait_for_timeout(1000)


def complaint(page: Any, button: str) -> str:
    page.click(f"button#{button}")
    page.wait_for_selector("#message .message")
    return str(page.inner_text("#message .message"))


@pytest.mark.slow
def test_a_prompt_is_typed_a_grid_appears_and_other_steps_change_it(page: Any) -> None:
    fill(page, "prompt", "a star")
    fill(page, "num", 4)
    one = press(page, "draw", 4)
    assert "4 masks of “a star” · 1 step" in page.inner_text("#summary")
    assert re.search(r"\d+ ms per mask", page.inner_text("#summary"))
    assert [row["seed"] for row in page.listed] == [0, 1, 2, 3]
    captions = page.locator(".masks figcaption").all_inner_texts()
    assert all(re.fullmatch(rf"seed {k} · [\d.]+ m?s", text) for k, text in enumerate(captions))
    fill(page, "steps", 4)
    four = press(page, "draw", 4)
    assert {row["steps"] for row in page.listed} == {4}
    assert any((a != b).any() for a, b in zip(one, four, strict=True))
    fill(page, "times", "0, 0.5, 1")
    press(page, "draw", 4)
    assert page.listed[0]["times"] == [0, 0.5, 1]
    assert page.listed[0]["steps"] == 2
    page.click("#enlarge input")
    page.get_by_role("option", name="256 pixels").click()
    large = press(page, "draw", 4)
    assert {row["enlarge"] for row in page.listed} == {4}
    assert {mask.shape for mask in large} == {(256, 256)}


@pytest.mark.slow
def test_bad_input_shows_a_message_and_the_page_goes_on(page: Any, address: str) -> None:
    fill(page, "num", 2)
    for field, value, said in (
        ("prompt", "", "There is no prompt"), ("prompt", "x" * 41, "has 41 letters"),
        ("times", "0,1,0.5", "Times is '0,1,0.5', but it must be"), ("negative", "a dog", "above 1"),
    ):  # fmt: skip
        before = page.locator(f"#{field} textarea, #{field} input").first.input_value()
        fill(page, field, value)
        text = complaint(page, "draw")
        assert said in text
        assert "Traceback" not in page.content()
        fill(page, field, before)
        press(page, "draw", 2)
        assert not page.locator("#message .message").is_visible()
    page.get_by_role("tab", name="Inpaint").click()
    assert "no mask to start from" in complaint(page, "inpaint")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/gradio_api/file=/etc/passwd")
    assert refused.value.code in (403, 404)


@pytest.mark.slow
def test_only_what_is_painted_over_is_drawn_anew(page: Any) -> None:
    fill(page, "prompt", "a house")
    fill(page, "num", 2)
    start = press(page, "draw", 2)[1]
    page.get_by_role("tab", name="Inpaint").click()
    fill(page, "which", 2)
    page.click("#take")
    page.wait_for_timeout(1500)  # the picture gets onto the canvas
    fill(page, "inpaint-prompt", "an umbrella")
    assert "nothing is painted over" in complaint(page, "inpaint").lower()
    box = settled(page, "#editor canvas")
    at = [(box["x"] + 0.65 * box["width"], box["y"] + (0.3 + 0.1 * k) * box["height"]) for k in range(4)]
    stroke(page, at)
    fill(page, "num", 3)
    masks = press(page, "inpaint", 3)
    assert page.listed[0].items() >= {"text": "an umbrella", "strength": 1.0}.items()
    changed = np.logical_or.reduce([mask != start for mask in masks])
    rows_changed, columns = np.nonzero(changed)
    assert 0.01 < changed.mean() < 0.3
    assert columns.min() > 0.45 * changed.shape[1]  # all left of the brush stroke is bit for bit as it was
    assert rows_changed.min() > 0.1 * changed.shape[0]
    page.locator("#anew").get_by_text("all of it").click()
    fill(page, "strength", 0.3)
    fill(page, "num", 1)
    (variation,) = press(page, "inpaint", 1)
    assert 0 < (variation != start).mean() < 0.25


@pytest.mark.slow
def test_painting_where_no_mask_is_yet_is_no_mask(page: Any) -> None:
    page.get_by_role("tab", name="Inpaint").click()
    box = settled(page, "#editor canvas")
    stroke(page, [(box["x"] + 0.5 * box["width"], box["y"] + (0.3 + 0.1 * k) * box["height"]) for k in range(4)])
    assert "no mask to start from" in complaint(page, "inpaint")


@pytest.mark.slow
def test_a_sketch_is_drawn_and_the_masks_heed_it(page: Any) -> None:
    page.get_by_role("tab", name="Sketch").click()
    assert "nothing is drawn yet" in complaint(page, "sketch").lower()
    box = settled(page, "#pad canvas")
    corners = [(0.5, 0.12), (0.84, 0.5), (0.5, 0.88), (0.16, 0.5), (0.5, 0.12)]  # the paper is from 0.14 to 0.86
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    stroke(page, at, steps=8)
    fill(page, "sketch-prompt", "a square")
    fill(page, "num", 4)
    masks = press(page, "sketch", 4)
    assert page.listed[0]["text"] == "a square"
    assert len(page.listed[0]["sketch"]) == 64
    page.get_by_role("tab", name="Prompt").click()
    fill(page, "prompt", "a square")
    plain = press(page, "draw", 4)
    assert "sketch" not in page.listed[0]
    assert all((a != b).any() for a, b in zip(masks, plain, strict=True))


@pytest.mark.slow
def test_a_way_leads_from_one_prompt_to_another(page: Any) -> None:
    page.get_by_role("tab", name="Between").click()
    fill(page, "from", "a heart")
    fill(page, "to", "a star")
    fill(page, "num", 3)
    masks = press(page, "between", 3)
    assert [row["blend"] for row in page.listed] == [0, 0.5, 1]
    assert (masks[0] != masks[2]).any()
    fill(page, "to", "")
    assert "nothing to lead to" in complaint(page, "between")
    fill(page, "to-seed", "7")
    press(page, "between", 3)
    fill(page, "num", 1)
    assert "needs 2 masks or more" in complaint(page, "between")


def test_a_mask_can_be_taken_from_a_grid_that_is_not_finished(checkpoint: str) -> None:
    pytest.importorskip("gradio", reason="the page's package is not installed (it is optional)")
    from scripts.demo_page import from_grid, looks

    results = draw_in_turn(FakeModule(ShortcutCfg()), asked(checkpoint))
    next(results)
    partial = next(results)
    shown = looks(partial, "m")[-1]
    editor, _ = from_grid(shown, 1)
    assert (editor["background"][::64, ::64] == partial.pixels[0]).all()
    _, message = from_grid(shown, 2)
    assert "the grid has masks 1 to 1" in message["value"]


@pytest.mark.parametrize("side", [32, 48, 64, 96, 100, 128])
def test_a_mask_of_the_grid_comes_back_from_the_drawing_area_as_it_was(side: int) -> None:
    pytest.importorskip("gradio", reason="the page's package is not installed (it is optional)")
    from scripts.demo_page import CANVAS, from_grid

    mask = np.random.default_rng(side).integers(0, 2, (side, side), np.uint8)
    shown: Any = SimpleNamespace(pixels=[255 * mask])
    editor, _ = from_grid(shown, 1)
    assert editor["background"].shape == (CANVAS, CANVAS)
    assert (fit_masks((editor["background"] > 0)[None].astype(np.uint8), side)[0] == mask).all()


def test_a_mask_that_is_larger_than_the_drawing_area_is_refused() -> None:
    pytest.importorskip("gradio", reason="the page's package is not installed (it is optional)")
    from scripts.demo_page import from_grid

    shown: Any = SimpleNamespace(pixels=[np.zeros((600, 600), np.uint8)])
    _, message = from_grid(shown, 1)
    assert "The masks have 600x600 pixels, but the drawing area only 512x512" in message["value"]


@pytest.mark.parametrize("colour", ["#ffffff", "#333333"])
def test_an_empty_canvas_is_no_mask_to_start_from(colour: str, tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page's package is not installed (it is optional)")
    from scripts.demo_page import ALL, PAINTED, painted

    canvas, line = Image.new("RGBA", (64, 64), colour), Image.new("RGBA", (64, 64))
    line.paste("#f97316", (8, 8, 16, 16))
    line.save(tmp_path / "line.png")
    drawing = {"background": str(tmp_path / "canvas.png"), "layers": [str(tmp_path / "line.png")]}
    canvas.save(drawing["background"])
    for what in (PAINTED, ALL):
        with pytest.raises(ConfigError, match="no mask to start from"):
            painted(drawing, what, tmp_path)
    canvas.paste("black", (0, 0, 32, 64))
    canvas.save(drawing["background"])
    assert painted(drawing, ALL, tmp_path) == {"init_mask": drawing["background"]}
    assert np.asarray(Image.open(painted(drawing, PAINTED, tmp_path)["keep"])).sum() == 255 * (64 * 64 - 8 * 8)


def test_a_way_to_nowhere_is_refused() -> None:
    pytest.importorskip("gradio", reason="the page's package is not installed (it is optional)")
    from scripts.demo_page import way_to

    with pytest.raises(ConfigError, match="there is nothing to lead to: write a second prompt, or a second seed"):
        way_to(" ", "")
    assert way_to(" a star", "") == {"to_prompt": "a star", "to_seed": None}
    assert way_to("", " 7") == {"to_prompt": None, "to_seed": 7}


def test_the_page_keeps_what_it_is_sent_where_nobody_else_can_read_it(served: tuple[str, Path]) -> None:
    (own,) = served[1].iterdir()
    assert own.stat().st_mode & 0o777 == 0o700
    assert any(own.iterdir())  # Gradio makes a folder at its start
