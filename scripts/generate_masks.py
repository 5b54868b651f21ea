"""Turn prompts into mask files: ``bash scripts/generate_masks.sh --prompt "a heart"``.

Writes one PNG per mask, ``manifest.jsonl`` (readable as a training set), ``grid.png`` and ``config.json``.
Under torchrun, every process draws its share, and the files are the same.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from configs.checks import ConfigError, require
from configs.cli import as_text, parse
from configs.generate_cfg import GenerateCfg
from configs.run_folder import release
from configs.shipped import checkpoint_path
from configs.whole_file import file_hash
from scripts.mask_files import (
    GRID,
    MANIFEST,
    PLAN,
    Plan,
    finished,
    output_folder,
    prepare_folder,
    require_masks,
    unique_slugs,
    write_mask,
    write_metadata,
)
from scripts.ranks import Ranks, joined, launched
from scripts.run import refuse_kindly

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from scripts.seeded import Recipe

LARGEST = 4096
"""Height and width that a mask can be enlarged to."""
GRID_COLUMNS = 16
GRID_ROWS = 24
AT_A_TIME = 4
"""Batches that are drawn at a time on a CPU, each by its share of the threads; beside a GPU, that are written."""
PROMPTS_KEPT = 1024
"""Prompts whose encoded states stay in memory."""


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    with refuse_kindly("generate_masks"):
        if words and not words[0].startswith("-"):
            raise ConfigError(f"{words[0]!r} is no option; a prompt goes after one: --prompt {shlex.quote(words[0])}")
        cfg: GenerateCfg = parse(GenerateCfg, argv, "scripts/generate_masks.sh", "Turn prompts into mask files.")
        read_prompts(cfg)  # what can be refused is refused before seconds go into imports
        if launched()[1] == 1:
            output_folder(cfg)
        elif not cfg.out:
            raise ConfigError("this process was started by a launcher, and each process would name its own folder: "
                              "add --out FOLDER")  # fmt: skip

        from scripts.mask_model import load_mask_model
        from scripts.seeded import choose_device

        with joined() as ranks:
            model = checkpoint_path(cfg.checkpoint)
            if ranks.rank == 0:
                print(f"{as_text(cfg)}\nmodel: {model}", flush=True)
            module = load_mask_model(model, choose_device(cfg.accelerator), cfg.precision == "bf16")
            module.encode_text.cache_size = PROMPTS_KEPT
            out = generate_to_folder(module, cfg, ranks)
            if ranks.rank == 0:
                print(f"masks: {out}\npicture: {out / GRID}")


def generate_to_folder(module: Any, cfg: GenerateCfg, ranks: Ranks | None = None) -> Path:
    """Draw every prompt ``cfg.num`` times per step count, and write the files; returns the folder.

    ``module`` is what ``load_mask_model(cfg.checkpoint)`` returns, on the device to use. Each of several ``ranks``
    calls this with the same config. No more than a few batches are held in memory.

    Raises:
        ConfigError: another generation is at work in the folder.
        MaskFileError: a mask that cannot be written.
        FileExistsError: a folder that is already in use.
        Other errors: as ``planned``.
    """
    from scripts.seeded import choose_device

    ranks = ranks or Ranks()
    plan, ways = planned(module, cfg)
    out = Path(cfg.out).expanduser()  # without a name, the first process finds one
    device = choose_device(cfg.accelerator)

    def begin() -> None:
        nonlocal out
        while True:
            out = output_folder(cfg)
            try:
                return prepare_folder(out, plan, cfg)
            except FileExistsError:
                if cfg.out or not os.path.lexists(out):
                    raise  # else another process has just made the folder of this number

    def end() -> None:
        draw_grid(out, plan, cfg.size)
        if cfg.imagefolder:
            write_metadata(out, plan)
        os.replace(out / PLAN, out / MANIFEST)

    try:
        ranks.first(begin)
        draw_share(module, plan, ways, device, out, cfg, ranks)
        ranks.agree()  # all files are there
        ranks.first(end)
    finally:
        if ranks.rank == 0:
            release(out)
    return out


def draw_share(
    module: Any, plan: Plan, ways: list[Recipe], device: Any, out: Path, cfg: GenerateCfg, ranks: Ranks
) -> None:
    """Draw and write this process's masks of a plan. Raises MaskFileError where one cannot be written.

    On a CPU a few batches are drawn at a time: the layers of a small network are too short for many threads to share,
    and each has to wait for the slowest. One thread writes them: several would take the cores from those that draw,
    unless each mask is work. A GPU draws one batch at a time, and several threads write.
    """
    import torch
    from tqdm import tqdm

    share = ranks.share(len(plan))
    starts = range(share.start, share.stop, cfg.batch_size)
    on_cpu, threads = device.type == "cpu", torch.get_num_threads()
    drawers = max(1, min(AT_A_TIME, threads, len(starts) * len(ways))) if on_cpu else 1
    stopped = Event()
    waiting: deque[tuple[Future[Future[None]], int]] = deque()

    def draw_and_have_written(numbers: list[int], way: Recipe) -> Future[None]:
        masks = draw_masks(module, plan, numbers, way, device) if numbers else []
        return writers.submit(write_masks, out, plan, numbers, way.steps, masks, cfg)

    def go_on_unless_stopped(*_: Any) -> None:
        if stopped.is_set():
            raise InterruptedError("the generation was stopped")

    def finish_one() -> None:
        future, count = waiting.popleft()
        future.result().result()
        bar.update(count)

    quiet: dict[str, Any] = {"disable": True} if ranks.rank else {}  # else as TQDM_DISABLE says
    with (
        tqdm(total=len(share) * len(ways), desc="generating", unit=" masks", mininterval=0.5, **quiet) as bar,
        module.average.register_forward_pre_hook(go_on_unless_stopped),  # removed at the end
        ThreadPoolExecutor(1 if on_cpu and cfg.enlarge == 1 and not cfg.svg else AT_A_TIME) as writers,
        ThreadPoolExecutor(drawers, initializer=torch.set_num_threads, initargs=(max(1, threads // drawers),)) as pool,
    ):
        try:
            for start in starts:
                batch = range(start, min(start + cfg.batch_size, share.stop))
                for way in ways:
                    names = {n: out / plan.name(n, way.steps) for n in batch}
                    numbers = [n for n, name in names.items() if not (cfg.resume and is_drawn(name, cfg.svg))]
                    if len(waiting) > AT_A_TIME:
                        finish_one()
                    waiting.append((pool.submit(draw_and_have_written, numbers, way), len(batch)))
            while waiting:
                finish_one()
        finally:
            stopped.set()  # the pool waits for what its threads are doing
    torch.set_num_threads(threads)  # what further threads begin with


def is_drawn(path: Path, svg: bool) -> bool:
    """Whether a mask is there, with its SVG where one is asked for. A machine that lost its power can leave a file's
    name without its content.
    """
    try:
        return all(file.stat().st_size > 0 for file in (path, path.with_suffix(".svg"))[: 1 + svg])
    except OSError:
        return False


def planned(module: Any, cfg: GenerateCfg) -> tuple[Plan, list[Recipe]]:
    """What a generation will draw, and how, once for each step count; nothing is drawn or written yet.

    Raises:
        ConfigError, SamplerMismatch, DataError: settings that fit neither the model nor each other, an unreadable mask.
        FileNotFoundError: no prompts file.
    """
    from scripts.edits import read_edit, read_sketch
    from scripts.seeded import build_sampler_for, recipes, useful_corrections, useful_tries

    prompts = read_prompts(cfg)
    require_masks(cfg, module.cfg.data.channels)
    side = module.cfg.data.image_size
    most = max(1, LARGEST // side)
    require(cfg.enlarge <= most, "enlarge", cfg.enlarge, f"at most {most} for masks of {side} pixels")
    tries = 1 if cfg.on_a_way else useful_tries(cfg.tries, prompts, module.cfg.data.channels)
    as_drawn = cfg.on_a_way or cfg.init_mask  # what lies between two, or is to stay, is no matter of words alone
    corrections = 0 if as_drawn else useful_corrections(cfg.corrections, prompts, module)
    sampler = build_sampler_for(module.cfg.sampler, cfg.sampler, cfg.eta)
    edit, about = read_edit(cfg, module)
    sketch, said = read_sketch(cfg, module)
    negative, to_prompt = folded(cfg.negative_prompt), None if cfg.to_prompt is None else folded(cfg.to_prompt)
    ways = recipes(
        sampler, cfg.steps, cfg.time_list, cfg, edit=edit, sketch=sketch, negative=negative, to_prompt=to_prompt,
        to_seed=cfg.to_seed, tries=tries, corrections=corrections, threshold=cfg.threshold,
    )
    shared = {
        "times": cfg.time_list and list(cfg.time_list), "shift": cfg.shift, "sampler": sampler.name,
        "eta": getattr(sampler.cfg, "eta", None), "guidance": cfg.guidance, "guidance_from": cfg.guidance_from,
        "guidance_to": cfg.guidance_to, "cfg_zero": cfg.cfg_zero, "zero_init": cfg.zero_init,
        "threshold": cfg.threshold, "precision": cfg.precision,
        "one_bit": cfg.one_bit,
        "checkpoint": getattr(module, "sha256", "") or file_hash(checkpoint_path(cfg.checkpoint)),
    }  # fmt: skip
    further = {"negative_prompt": negative or None, "to_prompt": to_prompt, "to_seed": cfg.to_seed, **about, **said}
    further["corrections"] = corrections or None
    further["tries"] = tries if tries > 1 else None
    further["enlarge"] = cfg.enlarge if cfg.enlarge > 1 else None
    further["svg"] = cfg.svg or None
    shared |= {name: value for name, value in further.items() if value is not None}
    steps = [way.steps for way in ways]
    return Plan(prompts, unique_slugs(prompts), cfg.num, cfg.seed, steps, shared, cfg.on_a_way), ways


def draw_masks(module: Any, plan: Plan, numbers: list[int], way: Recipe, device: Any) -> list[Tensor]:
    """Probabilities [C,H,W] of some masks of a plan."""
    from scripts.seeded import decided

    prompts = [plan.prompts[n // plan.num] for n in numbers]
    seeds = [plan.seed_of(n) for n in numbers]
    blends = [plan.blend(n) for n in numbers] if plan.on_a_way else []
    return decided(module, prompts, seeds, way, device, blends)


def write_masks(out: Path, plan: Plan, numbers: list[int], steps: int, masks: list[Tensor], cfg: GenerateCfg) -> None:
    """Write the masks of some numbers. Raises MaskFileError where one cannot be written."""
    for number, p in zip(numbers, masks, strict=True):
        write_mask(out, plan.about(number, steps), finished(p.numpy(), cfg))


def draw_grid(out: Path, plan: Plan, size: int) -> None:
    """grid.png: the first masks of the first prompts (or some from all of a way), a block per step count, each with
    ``size`` pixels (0: what suits it).
    """
    import numpy as np
    from PIL import Image

    from scripts.pictures import cell_for, mask_grid

    with Image.open(out / plan.name(0, plan.steps[0])) as first:
        cell = size or cell_for(max(first.size))

    def thumbnail(path: Path) -> np.ndarray:
        """A mask; of a large one, as many pixels as a cell can be averaged from."""
        image = Image.open(path)
        image.thumbnail((4 * cell, 4 * cell), Image.Resampling.NEAREST)
        return np.asarray(image)

    columns = min(plan.num, max(4, GRID_COLUMNS // len(plan.steps)))
    shown = plan.prompts[:GRID_ROWS]
    picked = [round(k * (plan.num - 1) / max(1, columns - 1)) if plan.on_a_way else k for k in range(columns)]
    blocks = {}
    for steps in plan.steps:
        names = [[plan.name(row * plan.num + k, steps) for k in picked] for row in range(len(shown))]
        masks = [[thumbnail(out / name) for name in row] for row in names]
        blocks[f"{steps} step{'s' if steps > 1 else ''}"] = masks
    mask_grid(blocks, shown, cell).save(out / GRID)


def read_prompts(cfg: GenerateCfg) -> list[str]:
    """The prompts of the command line, then those of the file, each once, white space folded.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file is not UTF-8 text or says nothing, and no other prompt is given.
    """
    prompts = list(cfg.prompt)
    if cfg.prompts_file:
        path = Path(cfg.prompts_file).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"prompts_file is {cfg.prompts_file!r}, but there is no such file")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError(f"prompts_file is {cfg.prompts_file!r}, but it is not UTF-8 text") from None
        prompts += [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ConfigError(f"prompts_file is {cfg.prompts_file!r}, but it holds no prompt: write one per line")
    return list(dict.fromkeys(folded(prompt) for prompt in prompts))


def folded(text: str) -> str:
    """White space folded, no half characters: a terminal's undecodable bytes arrive as such, and no file holds them."""
    return " ".join(text.replace("\0", " ").encode("utf-8", "replace").decode().split())


if __name__ == "__main__":
    main()
