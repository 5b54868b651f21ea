"""What the page does, without the page: requests to masks, one after the other, and to files."""

from __future__ import annotations

import base64
import html
import json
import math
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from configs.checks import ConfigError
from configs.demo_cfg import DemoCfg
from configs.generate_cfg import GenerateCfg
from scripts.generate_masks import draw_masks, folded, planned
from scripts.mask_files import MANIFEST, Finished, Plan, finished

MOST_STEPS = 128
PAUSE = 0.3
"""Seconds between two looks at a growing grid."""
MOST_AT_ONCE = 16
LARGE = 128
"""Pixels of a mask from which the page shows it smaller than it is, and therefore smooth."""
GRID_COLUMNS = 8


@dataclass
class Result:
    """The masks of a request, as far as they are drawn."""

    plan: Plan
    prompt: str
    masks: list[Finished] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """What each of them took."""

    @property
    def steps(self) -> int:
        return self.plan.steps[0]

    def about(self, number: int) -> dict[str, Any]:
        return self.plan.about(number, self.steps)

    def png(self, number: int) -> bytes:
        """A mask as a file, with its prompt and parameters in it."""
        return self.masks[number].png(self.about(number))

    @property
    def pixels(self) -> list[np.ndarray]:
        return [mask.pixels for mask in self.masks]


def whole(name: str, value: Any) -> int:
    """A whole number from a field of the page. Raises ConfigError."""
    number = real(name, value)
    if number != int(number):
        raise ConfigError(f"{name} is {value!r}, but it must be a whole number")
    return int(number)


def real(name: str, value: Any) -> float:
    """A number from a field of the page. Raises ConfigError."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{name} is {'empty' if value in (None, '') else repr(value)}, but it must be a number")
    return number


def request(
    cfg: DemoCfg, prompt: str, *, num: Any, steps: Any, guidance: Any, seed: Any, sampler: str = "", times: str = "",
    negative: str = "", enlarge: Any = 1, **further: Any,
) -> GenerateCfg:
    """The generation that the fields of the page ask for.

    Raises:
        ConfigError: values that the command would refuse too, or more than the page allows.
    """
    texts = {"prompt": prompt, "negative prompt": negative, "second prompt": further.get("to_prompt") or ""}
    for name, text in texts.items():
        if len(text or "") > cfg.most_letters:
            raise ConfigError(f"the {name} has {len(text)} letters, but this page takes {cfg.most_letters}: shorten it")
    if not folded(prompt or ""):
        raise ConfigError("there is no prompt: write what the masks should show, such as “a heart”")
    if len(times or "") > 1000:
        raise ConfigError("times is longer than 1,000 letters: name fewer times")
    count, asked = whole("number of masks", num), whole("steps", steps)
    if not 1 <= count <= cfg.most_masks:
        raise ConfigError(f"the number of masks is {count}, but this page draws 1 to {cfg.most_masks} at once")
    irregular = (times or "").strip()
    made = GenerateCfg(
        cfg.checkpoint, prompt=(prompt,), num=count, steps=() if irregular else (asked,), times=irregular,
        guidance=real("guidance", guidance), seed=whole("seed", seed), sampler=sampler, negative_prompt=negative or "",
        enlarge=whole("size", enlarge), accelerator=cfg.accelerator, **further,
    )
    taken = len(made.time_list) - 1 if made.time_list else asked
    if taken > MOST_STEPS:
        raise ConfigError(f"the number of steps is {taken}, but this page takes 1 to {MOST_STEPS}")
    return made


def draw_in_turn(module: Any, cfg: GenerateCfg) -> Iterator[Result]:
    """Draw the masks of a request and yield them as they come, first of all none; they are those of the command.

    Raises:
        Errors of ``planned``, before anything is drawn.
    """
    from scripts.seeded import choose_device

    plan, (way,) = planned(module, cfg)
    device, result, size = choose_device(cfg.accelerator), Result(plan, plan.prompts[0]), 1
    yield result
    while len(result.masks) < len(plan):
        begun, done = time.perf_counter(), len(result.masks)
        numbers = list(range(done, min(done + size, len(plan))))
        masks = draw_masks(module, plan, numbers, way, device)
        each = (time.perf_counter() - begun) / len(numbers)
        result.masks += [finished(p.numpy(), cfg) for p in masks]
        result.seconds += [each] * len(numbers)
        size = max(1, min(MOST_AT_ONCE, 2 * size, int(PAUSE / each)))
        yield result


def as_html(result: Result) -> str:
    """The grid: a picture for each mask, which a click saves, and frames for those that are still to come."""
    figures = []
    for number in range(len(result.plan)):
        about = result.about(number)
        label = f"{about['blend']:.0%}" if "blend" in about else f"seed {about['seed']}"
        if number >= len(result.masks):
            figures.append(f"<figure class='waiting'><div></div><figcaption>{label}</figcaption></figure>")
            continue
        source = "data:image/png;base64," + base64.b64encode(result.png(number)).decode()
        title = html.escape(f"{about['text']}, {label}: save as {about['file_name']}", quote=True)
        figures.append(
            f"<figure><a href='{source}' download='{about['file_name']}' title='{title}'><img src='{source}' "
            f"alt='{title}'></a><figcaption>{label} · {duration(result.seconds[number])}</figcaption></figure>"
        )
    large = result.masks and len(result.masks[0].pixels) >= LARGE
    return f"<div class='masks{' large' * bool(large)}'>{''.join(figures)}</div>"


def summary(result: Result, model: str) -> str:
    """One line on what was drawn and how long it took, as HTML."""
    done, total = len(result.masks), len(result.plan)
    about = result.about(0)
    said = [" to ".join(f"<b>“{html.escape(text)}”</b>" for text in (result.prompt, about.get("to_prompt")) if text)]
    said += [f"{result.steps} step{'s' if result.steps > 1 else ''}", html.escape(about["sampler"])]
    said += [f"guidance {about['guidance']:g}", html.escape(model)]
    if done:
        said.append(f"{duration(sum(result.seconds) / done)} per mask")
    count = f"{total} mask{'s' if total > 1 else ''}" if done == total else f"{done} of {total} masks"
    return f"<div class='summary'>{count} of {' · '.join(said)}</div>"


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def grid_picture(result: Result) -> bytes:
    """All masks in one PNG, with what the command would say of it as a text chunk."""
    from PIL.PngImagePlugin import PngInfo

    from scripts.pictures import cell_for, mask_grid

    pixels = result.pixels
    rows = [pixels[i : i + GRID_COLUMNS] for i in range(0, len(pixels), GRID_COLUMNS)]
    picture = mask_grid({"": rows}, [result.prompt, *[""] * (len(rows) - 1)], cell_for(max(pixels[0].shape)))
    info, content = PngInfo(), BytesIO()
    info.add_itxt("prompt", result.prompt)
    info.add_itxt("parameters", json.dumps(result.about(0), ensure_ascii=False))
    picture.save(content, "png", pnginfo=info)
    return content.getvalue()


def write_files(result: Result, folder: Path) -> tuple[Path, Path]:
    """The grid as a PNG, and a ZIP of all masks with their manifest, which is readable as a training set."""
    slug, picture = result.plan.slugs[0], grid_picture(result)
    grid, archive = folder / f"{slug}-grid.png", folder / f"{slug}.zip"
    grid.write_bytes(picture)
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(len(result.masks)):
            file.writestr(result.about(number)["file_name"], result.png(number))
        file.writestr(MANIFEST, "".join(result.plan.lines()))
        file.writestr("grid.png", picture)
    return grid, archive
