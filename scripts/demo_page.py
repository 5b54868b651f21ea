"""The page itself: fields, tabs and what they lead to. Everything about Gradio's components stays in this file."""

from __future__ import annotations

import html
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from configs.checks import ConfigError
from configs.demo_cfg import DemoCfg
from configs.shipped import SHIPPED
from data.images import read_mask
from data.masks import DataError
from samplers import SamplerMismatch, solvers_of
from scripts.demo_draw import MOST_STEPS, Result, as_html, draw_in_turn, real, request, summary, whole, write_files

CANVAS = 512
"""Pixels of the drawing area."""
FILES_KEPT = 3600
"""Seconds for which downloads are kept."""
PAINTED, ALL = "only what I paint over", "all of it (a variation)"
SAMPLERS_SAID = {
    "restart": "each step from fresh noise, 2 to 4 steps", "flow": "Euler, 16 steps or more",
    "heun": "second order, two calls a step", "dpmpp": "DPM-Solver++ 2M, 8 steps or more",
    "ddim": "deterministic, 16 steps or more", "ddpm": "ancestral, 64 steps or more",
}  # fmt: skip
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
footer { display: none !important; }
#title h1 { font-size: 1.55rem; margin: .4rem 0 0; } #title p { margin: .2rem 0 0; opacity: .75; }
.masks { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 12px; padding: 2px; }
.masks figure { margin: 0; } .masks img, .masks figure > div { width: 100%; aspect-ratio: 1; border-radius: 8px; }
.masks img { image-rendering: pixelated; display: block; margin: 0 !important; max-width: none !important; }
.masks.large img { image-rendering: auto; }
.masks a { display: block; border-radius: 8px; padding: 0 !important; } .masks a:hover { outline: 3px solid #f97316; }
.masks .waiting > div { background: repeating-linear-gradient(135deg, #e7e5e4 0 8px, #f5f5f4 8px 16px); }
.dark .masks .waiting > div { background: repeating-linear-gradient(135deg, #1e293b 0 8px, #273449 8px 16px); }
.masks figcaption { font-size: .78rem; text-align: center; padding-top: 3px; opacity: .8; white-space: nowrap; }
.summary { font-size: .95rem; padding: 2px; } #summary, #grid, #message { padding: 0 !important; }
#from-grid button { align-self: end; } .empty { opacity: .6; padding: 3rem 1rem; text-align: center; }
.message { border-left: 4px solid #dc2626; background: #fef2f2; color: #7f1d1d; padding: .7rem .9rem;
           border-radius: 6px; }
"""
EMPTY = "<div class='empty'>Masks appear here. A click on one saves it with its prompt and settings inside.</div>"


def theme(gradio: Any) -> Any:
    """Fonts of the visitor's system, so that the page asks no other server for any."""
    fonts = ["system-ui", "sans-serif"]
    colours = gradio.themes.Default(primary_hue="orange", neutral_hue="slate", font=fonts, font_mono=["monospace"])
    return colours.set(body_background_fill="#faf9f6", block_title_text_weight="600")


def build_page(module: Any, cfg: DemoCfg) -> gr.Blocks:
    """The page around ``module``, which ``load_mask_model`` returned; nothing listens yet."""
    names = list(solvers_of(module.cfg.sampler))
    trained = next(name for name in names if solvers_of(module.cfg.sampler)[name][0] is type(module.cfg.sampler))
    model = cfg.checkpoint if cfg.checkpoint in SHIPPED else Path(cfg.checkpoint).name
    with gr.Blocks(title="Masks from prompts", analytics_enabled=False, delete_cache=(600, FILES_KEPT)) as page:
        size = module.cfg.data.image_size
        gr.Markdown(
            f"# Masks from prompts\nModel `{model}`, masks of {size}x{size} pixels in 1 to {MOST_STEPS} network steps. "
            "The same seed and settings give the same mask.", elem_id="title",
        )
        last: Any = gr.State(None)  # the result that is shown, of this visitor; it grows while it is drawn
        with gr.Row():
            with gr.Column(scale=6, min_width=340):
                with gr.Tabs():
                    with gr.Tab("Prompt", id="prompt"):
                        prompt = gr.Textbox(label="Prompt", value="a heart", lines=1, elem_id="prompt")
                        negative = gr.Textbox(
                            label="Negative prompt", info="What they should not be; needs guidance above 1.",
                            elem_id="negative",
                        )
                        draw = gr.Button("Draw", variant="primary", elem_id="draw")
                    with gr.Tab("Sketch", id="sketch", visible=bool(module.cfg.backbone.sketch)):
                        pad, sketch_prompt, sketch = sketch_fields()
                    with gr.Tab("Inpaint", id="inpaint"):
                        editor, which, source, anew, strength, inpaint_prompt, inpaint = inpaint_fields()
                    with gr.Tab("Between", id="between"):
                        first, second, to_seed, between = between_fields()
                with gr.Group():
                    with gr.Row():
                        steps = gr.Slider(1, MOST_STEPS, value=1, step=1, label="Steps", elem_id="steps")
                        num = gr.Slider(
                            1, cfg.most_masks, value=min(12, cfg.most_masks), step=1, label="Masks", elem_id="num"
                        )
                    with gr.Row():
                        guidance = gr.Slider(0, 6, value=1, step=0.1, label="Guidance", elem_id="guidance")
                        seed = gr.Number(value=0, precision=0, label="Seed of the first", elem_id="seed")
                    sizes = [(f"{k * size} pixels", k) for k in (1, 2, 4, 8) if k == 1 or CANVAS % (k * size) == 0]
                    enlarge = gr.Dropdown(
                        sizes, value=1, label="Size of a mask", elem_id="enlarge",
                        info="Larger: a smooth outline, no new detail.", visible=module.cfg.data.channels == 1,
                    )
                    said = [(f"{n} ({SAMPLERS_SAID.get(n, 'as trained')})", n) for n in names]
                    sampler = gr.Dropdown(said, value=trained, label="Sampler", elem_id="sampler")
                    times = gr.Textbox(
                        label="Irregular times in the place of steps", placeholder="0, 0.3, 0.5, 1", elem_id="times"
                    )
            with gr.Column(scale=7, min_width=340):
                message = gr.HTML(visible=False, elem_id="message")
                line = gr.HTML("", elem_id="summary")
                grid = gr.HTML(EMPTY, elem_id="grid")
                with gr.Row():
                    small: dict[str, Any] = {"interactive": False, "size": "md", "min_width": 120}
                    stop = gr.Button("Stop", elem_id="stop", **small)
                    picture = gr.DownloadButton("Grid as PNG", elem_id="png", **small)
                    archive = gr.DownloadButton("Masks as ZIP", elem_id="zip", **small)

        outputs = [message, line, grid, picture, archive, stop, last]
        shared = [steps, num, guidance, seed, sampler, times, enlarge]

        def on_prompt(text: str, against: str, *fields: Any) -> Iterator[Any]:
            yield from shown(lambda: request(cfg, text, negative=against, **settings(fields)))

        def on_sketch(text: str, drawing: Any, *fields: Any) -> Iterator[Any]:
            with tempfile.TemporaryDirectory() as folder:
                yield from shown(lambda: request(cfg, text, sketch=sketched(drawing, Path(folder)), **settings(fields)))

        def on_inpaint(text: str, drawing: Any, what: str, much: Any, *fields: Any) -> Iterator[Any]:
            with tempfile.TemporaryDirectory() as folder:
                yield from shown(lambda: request(
                    cfg, text, strength=real("strength", much), **painted(drawing, what, Path(folder)),
                    **settings(fields),
                ))  # fmt: skip

        def on_between(text: str, other: str, end: str, *fields: Any) -> Iterator[Any]:
            yield from shown(lambda: request(cfg, text, **way_to(other, end), **settings(fields, least=2)))

        def settings(fields: Any, least: int = 1) -> dict[str, Any]:
            names = ("steps", "num", "guidance", "seed", "sampler", "times", "enlarge")
            named = dict(zip(names, fields, strict=True))
            if whole("number of masks", named["num"]) < least:
                raise ConfigError(f"a way between two needs {least} masks or more: ask for more")
            return named

        def shown(ask: Callable[[], Any]) -> Iterator[Any]:
            """Draw what is asked for, updating the page; every mistake becomes a sentence on it."""
            try:
                for result in draw_in_turn(module, ask()):
                    yield looks(result, model)
                with tempfile.TemporaryDirectory() as folder:
                    yield looks(result, model, [str(path) for path in write_files(result, Path(folder))])
            except (ConfigError, SamplerMismatch, DataError) as mistake:
                yield complaint(str(mistake))
            except Exception:  # the page stays up, and tells whoever runs it more than its visitors
                traceback.print_exc()
                yield complaint("something went wrong here; whoever runs this page finds the reason in its terminal")

        requests = []
        for button, function, fields in (
            (draw, on_prompt, [prompt, negative]), (sketch, on_sketch, [sketch_prompt, pad]),
            (inpaint, on_inpaint, [inpaint_prompt, editor, anew, strength]),
            (between, on_between, [first, second, to_seed]),
        ):  # fmt: skip
            triggers = [button.click, *(field.submit for field in fields if isinstance(field, gr.Textbox))]
            requests.append(gr.on(
                triggers, function, [*fields, *shared], outputs, show_progress="hidden", api_visibility="private",
                concurrency_id="network", concurrency_limit=1, trigger_mode="once",
            ))  # fmt: skip
        stop.click(
            lambda: gr.update(interactive=False), None, stop, cancels=requests, queue=False, api_visibility="private"
        )
        source.click(from_grid, [last, which], [editor, message], show_progress="hidden", api_visibility="private")
    return page


def drawing_area(name: str, colour: str, pen: int, sources: Any = (), value: Any = None) -> Any:
    return gr.ImageEditor(
        value, type="filepath", format="png", image_mode="RGBA", sources=sources, layers=False, transforms=(),
        brush=gr.Brush(default_size=pen, colors=[colour], default_color=colour, color_mode="fixed"),
        canvas_size=(CANVAS, CANVAS), fixed_canvas=True, show_label=False, elem_id=name, height=380,
    )  # fmt: skip


def sketch_fields() -> tuple[Any, ...]:
    gr.Markdown("Draw an outline or a rough shape. The prompt says what it is of.")
    paper = np.full((CANVAS, CANVAS, 3), 255, np.uint8)  # or the brush would have to be chosen first
    pad = drawing_area("pad", "#1e293b", 12, value={"background": paper, "layers": [], "composite": None})
    prompt = gr.Textbox(label="Prompt", value="a house", elem_id="sketch-prompt")
    return pad, prompt, gr.Button("Draw it", variant="primary", elem_id="sketch")


def inpaint_fields() -> tuple[Any, ...]:
    gr.Markdown("Upload a mask, or take one of the grid. Then paint over what is to be drawn anew.")
    editor = drawing_area("editor", "#f97316", 64, ("upload", "clipboard"))
    with gr.Row(equal_height=True, elem_id="from-grid"):
        which = gr.Number(value=1, precision=0, label="Mask of the grid", elem_id="which", min_width=90)
        source = gr.Button("Take this one", elem_id="take", min_width=120)
    anew = gr.Radio([PAINTED, ALL], value=PAINTED, label="Draw anew", elem_id="anew")
    strength = gr.Slider(
        0.05, 1, value=1, step=0.05, label="Strength", elem_id="strength",
        info="1 starts there from nothing but noise, less from the mask as it is.",
    )
    prompt = gr.Textbox(label="Prompt", value="a heart", elem_id="inpaint-prompt")
    return editor, which, source, anew, strength, prompt, gr.Button("Draw anew", variant="primary", elem_id="inpaint")


def between_fields() -> tuple[Any, ...]:
    gr.Markdown("Masks on the way from one prompt, or one seed, to another, in equal parts.")
    first = gr.Textbox(label="From", value="a heart", elem_id="from")
    second = gr.Textbox(label="To", value="a cloud", info="Empty: the prompt stays.", elem_id="to")
    to_seed = gr.Textbox(label="To seed", info="Empty: the seed stays.", elem_id="to-seed")
    return first, second, to_seed, gr.Button("Draw the way", variant="primary", elem_id="between")


def looks(result: Result, model: str, files: list[str] | None = None) -> list[Any]:
    """Updates of the page for a result that is still drawn, or that is done and has its files."""
    picture, archive = [gr.update(value=path, interactive=True) for path in files] if files else [
        gr.update(interactive=False), gr.update(interactive=False)
    ]
    return [
        gr.update(visible=False), summary(result, model), as_html(result), picture, archive,
        gr.update(interactive=not files), result,
    ]  # fmt: skip


def complaint(sentence: str) -> list[Any]:
    """Updates of the page for a request that was refused; the masks before it stay."""
    text = f"<div class='message' role='alert'>{html.escape(sentence[:1].upper() + sentence[1:])}.</div>"
    return [gr.update(value=text, visible=True), *[gr.skip()] * 4, gr.update(interactive=False), gr.skip()]


def way_to(prompt: str, seed: str) -> dict[str, Any]:
    """``to_prompt`` and ``to_seed`` for the ends of a way. Raises ConfigError where both fields are empty."""
    if not prompt.strip() and not seed.strip():
        raise ConfigError("there is nothing to lead to: write a second prompt, or a second seed, or both")
    return {"to_prompt": prompt.strip() or None, "to_seed": whole("second seed", seed) if seed.strip() else None}


def from_grid(last: Result | None, which: Any) -> list[Any]:
    """A mask that is shown, counted from 1, as large as the drawing area."""
    shown = len(last.pixels) if last else 0
    try:
        number = whole("mask of the grid", which)
        if not last or not 1 <= number <= shown:
            rule = f"the grid has masks 1 to {shown}" if shown else "there is none yet: draw some on the first tab"
            raise ConfigError(f"mask {number} is asked for, but {rule}")
        if (side := len(last.pixels[0])) > CANVAS:
            raise ConfigError(f"the masks have {side}x{side} pixels, but the drawing area only {CANVAS}x{CANVAS}: save "
                              "this one, and name it with --init-mask of scripts/generate_masks.sh")  # fmt: skip
    except ConfigError as mistake:
        return [gr.skip(), complaint(str(mistake))[0]]
    pixels = last.pixels[number - 1]
    at = np.arange(CANVAS) * len(pixels) // CANVAS  # the whole area, or the mask would come back with a margin
    return [{"background": pixels[at][:, at], "layers": [], "composite": None}, gr.update(visible=False)]


def strokes(drawing: Any) -> np.ndarray:
    """[H,W] bool, True where the brush was; one False where it was not used."""
    from PIL import Image

    layers = (drawing or {}).get("layers") or []
    over = [np.asarray(Image.open(layer).convert("RGBA"))[..., 3] > 0 for layer in layers]
    return np.logical_or.reduce(over) if over else np.zeros((1, 1), bool)


def sketched(drawing: Any, folder: Path) -> str:
    """A file with the lines of the drawing area. Raises ConfigError where there are none."""
    from PIL import Image

    lines = strokes(drawing)
    if not lines.any():
        raise ConfigError("nothing is drawn yet: draw what the masks should follow")
    Image.fromarray(lines.astype(np.uint8) * 255).save(folder / "sketch.png")
    return str(folder / "sketch.png")


def painted(drawing: Any, what: str, folder: Path) -> dict[str, str]:
    """``init_mask`` and ``keep`` for what is in the drawing area.

    Raises:
        ConfigError: no mask, or nothing painted where only that is to be drawn anew.
    """
    from PIL import Image

    background = (drawing or {}).get("background")
    if not background or is_blank(background):
        raise ConfigError("there is no mask to start from: upload one, or take one of the grid")
    if what == ALL:
        return {"init_mask": background}
    anew = strokes(drawing)
    if not anew.any():
        raise ConfigError("nothing is painted over: paint over what is to be drawn anew, or choose to vary all of it")
    height, width = read_mask(background).shape
    region = Image.fromarray((~anew).astype(np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST)
    region.save(folder / "keep.png")
    return {"init_mask": background, "keep": str(folder / "keep.png")}


def is_blank(picture: str) -> bool:
    """Whether a picture has one colour alone that is not black, as the drawing area where no mask is in it."""
    from PIL import Image

    pixels = np.asarray(Image.open(picture).convert("RGBA"))
    return bool((pixels == pixels[0, 0]).all() and pixels[0, 0, :3].any())
