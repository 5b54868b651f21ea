"""Turn prompts into mask files: ``bash scripts/generate_masks.sh --prompt "a heart"``.

Writes one PNG per mask, ``manifest.jsonl`` (readable as a training set), ``grid.png`` and ``config.json``.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.checks import ConfigError
from configs.cli import as_text, parse, to_dict
from configs.generate_cfg import GenerateCfg
from configs.shipped import FOLDER, checkpoint_path
from scripts.run import refuse_kindly

if TYPE_CHECKING:
    import numpy as np

SLUG_LENGTH = 48
GRID_COLUMNS = 16
GRID_ROWS = 24


def main(argv: list[str] | None = None) -> None:
    args = sys.argv[1:] if argv is None else argv
    cfg: GenerateCfg = parse(GenerateCfg, args, "scripts/generate_masks.sh", "Turn prompts into mask files.")
    with refuse_kindly("generate_masks"):
        read_prompts(cfg)  # what can be refused is refused before seconds go into imports
        output_folder(cfg)

        from diffusion import load_diffusion
        from scripts.seeded import choose_device

        model = checkpoint_path(cfg.checkpoint)
        print(f"{as_text(cfg)}\nmodel: {model}", flush=True)
        out = generate_to_folder(load_diffusion(model, choose_device(cfg.accelerator)), cfg)
        print(f"masks: {out}\npicture: {out / 'grid.png'}")


def generate_to_folder(module: Any, cfg: GenerateCfg) -> Path:
    """Draw every prompt ``cfg.num`` times per step count, and write the files; returns the folder.

    ``module`` is what ``load_diffusion(cfg.checkpoint)`` returns, on the device to use.

    Raises:
        ConfigError, SamplerMismatch: settings that do not fit the checkpoint.
        FileNotFoundError, FileExistsError: no prompts file, or a folder that is already in use.
    """
    from tqdm import tqdm

    from models.checkpoint import file_hash
    from scripts.pictures import mask_grid
    from scripts.seeded import build_sampler_for, choose_device, decided, recipes

    prompts, out = read_prompts(cfg), output_folder(cfg)
    slugs = unique_slugs(prompts)
    sampler = build_sampler_for(module.cfg.sampler, cfg.sampler, cfg.eta)
    ways = recipes(sampler, cfg.steps, cfg.time_list, cfg)
    device = choose_device(cfg.accelerator)
    shared = {
        "times": cfg.time_list and list(cfg.time_list), "shift": cfg.shift, "sampler": sampler.name,
        "eta": getattr(sampler.cfg, "eta", None), "guidance": cfg.guidance, "guidance_from": cfg.guidance_from,
        "guidance_to": cfg.guidance_to, "cfg_zero": cfg.cfg_zero, "zero_init": cfg.zero_init,
        "threshold": cfg.threshold, "checkpoint": file_hash(checkpoint_path(cfg.checkpoint)),
    }
    jobs = [(row, k) for row in range(len(prompts)) for k in range(cfg.num)]
    columns = min(cfg.num, max(4, GRID_COLUMNS // len(ways)))
    shown = prompts[:GRID_ROWS]
    blocks: dict[str, list[list[np.ndarray]]] = {}

    prepare_folder(out, cfg)
    with (
        (out / "manifest.jsonl").open("w", encoding="utf-8") as manifest,
        tqdm(total=len(jobs) * len(ways), desc="generating", unit=" masks", mininterval=0.5) as bar,
    ):
        for way in ways:
            rows = blocks[f"{way.steps} step{'s' if way.steps > 1 else ''}"] = [[] for _ in shown]
            mark = f"-s{way.steps:02d}" if len(ways) > 1 else ""
            masks = decided(
                module, [prompts[row] for row, _ in jobs], [cfg.seed + k for _, k in jobs], way, device,
                threshold=cfg.threshold, batch_size=cfg.batch_size,
            )
            for (row, k), p in zip(jobs, masks, strict=True):
                pixels = to_pixels(p.numpy(), cfg.threshold)
                name = f"{slugs[row]}{mark}-{k:04d}.png"
                about = {
                    "file_name": name, "text": prompts[row], "seed": cfg.seed + k,
                    "steps": way.steps, **shared,
                }
                write_png(out / name, pixels, about, cfg.one_bit)
                manifest.write(json.dumps(about, ensure_ascii=False) + "\n")
                if row < len(shown) and k < columns:
                    rows[row].append(pixels)
                bar.update()
    mask_grid(blocks, shown, cfg.size).save(out / "grid.png")
    return out


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
    # A terminal's undecodable bytes arrive as half characters, which no file can hold.
    folded = (" ".join(p.replace("\0", " ").encode("utf-8", "replace").decode().split()) for p in prompts)
    return list(dict.fromkeys(folded))


def slug(prompt: str) -> str:
    """A file name's worth of a prompt: 1 to 48 of a-z, 0-9 and "-", whatever the prompt is."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:SLUG_LENGTH].strip("-") or "mask"


def unique_slugs(prompts: Iterable[str]) -> list[str]:
    """A slug per prompt; where two are equal, the later one gets a number."""
    taken: dict[str, None] = {}
    for prompt in prompts:
        base = name = slug(prompt)
        count = 1
        while name in taken:
            count += 1
            name = f"{base[: SLUG_LENGTH - len(str(count)) - 1].rstrip('-')}-{count}"
        taken[name] = None
    return list(taken)


def output_folder(cfg: GenerateCfg) -> Path:
    """Where the files go; nothing is made yet. Raises FileExistsError for a folder in use (without ``overwrite``)."""
    if not cfg.out:
        beside = checkpoint_path(cfg.checkpoint).parent
        if beside == FOLDER:
            beside = Path("runs")
        return next(path for n in range(1, 10**6) if not (path := beside / f"masks-{n}").exists())
    out = Path(cfg.out).expanduser()
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out is {cfg.out!r}, which is a file: name a folder")
    if not cfg.overwrite and out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"out is {cfg.out!r}, which is not empty: name another folder, or add --overwrite True")
    return out


def prepare_folder(out: Path, cfg: GenerateCfg) -> None:
    """Make the folder, remove the files that an earlier manifest in it lists (and no other), and save the config."""
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / "manifest.jsonl"
    if manifest.is_file():
        for line in manifest.read_text(encoding="utf-8", errors="replace").splitlines():
            name = re.search(r'"file_name": "([a-z0-9-]+\.png)"', line)
            if name:
                (out / name[1]).unlink(missing_ok=True)
    (out / "config.json").write_text(json.dumps(to_dict(cfg), indent=2) + "\n", encoding="utf-8")


def to_pixels(p: np.ndarray, threshold: float) -> np.ndarray:
    """Probabilities [1,H,W] -> uint8 mask [H,W] of 0 and 255; colours [3,H,W] in [0,1] -> uint8 [H,W,3]."""
    if len(p) == 1:
        return (p[0] > threshold).astype("uint8") * 255
    return (p.transpose(1, 2, 0) * 255).round().clip(0, 255).astype("uint8")


def write_png(path: Path, pixels: np.ndarray, about: dict[str, Any], one_bit: bool) -> None:
    """Write a mask with its prompt and parameters as text chunks (``prompt``, and ``parameters`` in JSON)."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("prompt", about["text"])
    info.add_itxt("parameters", json.dumps(about, ensure_ascii=False))
    image = Image.fromarray(pixels)
    (image.convert("1", dither=Image.Dither.NONE) if one_bit and pixels.ndim == 2 else image).save(path, pnginfo=info)


if __name__ == "__main__":
    main()
