"""The files of a generation: their names, what is said of each, the folder, and writing them."""

from __future__ import annotations

import html
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.checks import ConfigError
from configs.cli import to_dict
from configs.generate_cfg import GenerateCfg
from configs.run_folder import LOCK, lock
from configs.shipped import FOLDER, checkpoint_path

if TYPE_CHECKING:
    import numpy as np

SLUG_LENGTH = 48
MANIFEST = "manifest.jsonl"
METADATA = "metadata.jsonl"
CONFIG = "config.json"
GRID = "grid.png"
COLUMNS = ("file_name", "text", "seed", "steps")
PLAN = ".manifest.jsonl.part"  # the manifest until every file that it lists is there
LISTED = re.compile(r'"file_name": "([a-z0-9-]+\.png)"')
NO_PLAN_YET = {LOCK, f"{PLAN}.new"}  # what a generation leaves that is killed before it has a plan


class MaskFileError(RuntimeError):
    """A mask could not be written: the disk is full, or lost."""


@dataclass(frozen=True)
class Plan:
    """Every file of a generation as a function of its number, so that no list grows with the number of masks.

    Number n is mask ``n % num`` of prompt ``n // num``, drawn once in each of ``steps``. Its seed is
    ``seed + n % num``, or ``seed`` on a way to another prompt or seed, of which it has gone the share ``blend(n)``.
    On a way to another prompt, its text is the nearer one of the two.
    """

    prompts: Sequence[str]
    slugs: Sequence[str]
    num: int
    seed: int
    steps: Sequence[int]
    shared: dict[str, Any]
    """What is said of every file."""
    on_a_way: bool = False

    def __len__(self) -> int:
        return len(self.prompts) * self.num

    def seed_of(self, number: int) -> int:
        return self.seed if self.on_a_way else self.seed + number % self.num

    def blend(self, number: int) -> float:
        """0 at the first mask of a prompt, 1 at the last."""
        return number % self.num / (self.num - 1)

    def name(self, number: int, steps: int) -> str:
        mark = f"-s{steps:02d}" if len(self.steps) > 1 else ""
        return f"{self.slugs[number // self.num]}{mark}-{number % self.num:04d}.png"

    def about(self, number: int, steps: int) -> dict[str, Any]:
        """A line of the manifest."""
        text, way = self.prompts[number // self.num], dict[str, Any]()
        if self.on_a_way:
            way["blend"] = self.blend(number)
            if "to_prompt" in self.shared:
                way["from_prompt"] = text
                text = self.shared["to_prompt"] if way["blend"] > 0.5 else text
        return {
            "file_name": self.name(number, steps), "text": text, "seed": self.seed_of(number), "steps": steps,
            **self.shared, **way,
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """The manifest."""
        for steps in self.steps:
            for number in range(len(self)):
                yield json.dumps(self.about(number, steps), ensure_ascii=False) + "\n"


def slug(prompt: str) -> str:
    """A file name's worth of a prompt: 1 to 48 of a-z, 0-9 and "-", whatever the prompt is."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:SLUG_LENGTH].strip("-") or "mask"


def unique_slugs(prompts: Iterable[str]) -> list[str]:
    """A slug per prompt; where two are equal, the later one gets a number."""
    taken: dict[str, None] = {}
    tried: dict[str, int] = {}  # slug -> the last number that it was given
    for prompt in prompts:
        base = name = slug(prompt)
        count = tried.get(base, 1)
        while name in taken:
            count += 1
            name = f"{base[: SLUG_LENGTH - len(str(count)) - 1].rstrip('-')}-{count}"
        tried[base] = count
        taken[name] = None
    return list(taken)


def output_folder(cfg: GenerateCfg) -> Path:
    """Where the files go; nothing is made yet.

    Raises:
        FileExistsError: a folder in use, without ``overwrite`` and without a generation to resume; with ``overwrite``,
            one without a generation but with files of the names that a generation writes.
    """
    if not cfg.out:
        beside = checkpoint_path(cfg.checkpoint).parent
        if beside == FOLDER:
            beside = Path("runs")
        return next(path for n in range(1, 10**6) if not os.path.lexists(path := beside / f"masks-{n}"))
    out = Path(cfg.out).expanduser()
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out is {cfg.out!r}, which is a file: name a folder")
    if not out.is_dir() or all(path.name in NO_PLAN_YET for path in out.iterdir()):
        return out
    begun = [name for name in (PLAN, MANIFEST) if (out / name).is_file()]
    if cfg.overwrite:
        theirs = [name for name in (CONFIG, GRID, METADATA) if not begun and os.path.lexists(out / name)]
        if theirs:
            raise FileExistsError(f"out is {cfg.out!r}, which holds no generation, but a {theirs[0]} of something "
                                  "else, which is not overwritten: name another folder")  # fmt: skip
        return out
    if not cfg.resume:
        hint = "go on with its generation by --resume True, " if begun else ""
        raise FileExistsError(
            f"out is {cfg.out!r}, which is not empty: {hint}name another folder, or add --overwrite True"
        )
    if not begun:
        raise FileExistsError(f"out is {cfg.out!r}, which is not empty and holds no generation to resume: "
                              "name another folder")  # fmt: skip
    return out


def prepare_folder(out: Path, plan: Plan, cfg: GenerateCfg) -> None:
    """Make the folder; remove the files that an earlier manifest lists (and no other), unless they are to be kept.

    The folder is then this process's own, until ``release``.

    Raises:
        ConfigError: the generation to resume had other settings, or another one is at work there.
        FileExistsError: another process has just made this folder, where none was named; or it holds files of the names
            that are to be written, which are of no earlier generation.
    """
    out.mkdir(parents=True, exist_ok=bool(cfg.out))
    lock(out, "generation", "--out")
    require_own(out, plan, cfg)
    for begun in (out / PLAN, out / MANIFEST):
        if begun.is_file() and cfg.resume:
            check_same(begun, plan)
            break
        if begun.is_file():
            with begun.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if name := LISTED.search(line):
                        (out / name[1]).unlink(missing_ok=True)
                        if '"svg": true' in line:
                            (out / name[1]).with_suffix(".svg").unlink(missing_ok=True)
            (out / METADATA).unlink(missing_ok=True)
    for kind in ("png", "svg"):
        for part in out.glob(f".*.{kind}.part"):  # of a process that was killed
            part.unlink()
    with (part := out / f"{PLAN}.new").open("w", encoding="utf-8") as file:
        file.writelines(plan.lines())
    os.replace(part, out / PLAN)
    if cfg.overwrite:
        (out / MANIFEST).unlink(missing_ok=True)  # not before: at any moment, the folder is that of a generation
    (out / CONFIG).write_text(json.dumps(to_dict(cfg), indent=2) + "\n", encoding="utf-8")


def require_own(out: Path, plan: Plan, cfg: GenerateCfg) -> None:
    """Raises FileExistsError for a file that would be replaced or removed, though no earlier generation wrote it."""
    if cfg.resume and not cfg.overwrite and not cfg.imagefolder:
        return  # nothing that is there is touched
    manifests = [path for path in (out / PLAN, out / MANIFEST) if path.is_file()]
    if (out / METADATA).is_file() and not any(same_captions(out / METADATA, path) for path in manifests):
        raise FileExistsError(f"{out / METADATA} is of no generation, or its captions were changed since: move it "
                              "away, or name another folder")  # fmt: skip
    if not cfg.overwrite:
        return
    names = (plan.name(number, steps) for steps in plan.steps for number in range(len(plan)))
    files = {path for name in names for path in (name, name.removesuffix("png") + "svg") if os.path.lexists(out / path)}
    for path in manifests:
        with path.open(encoding="utf-8", errors="replace") as lines_of:
            for line in lines_of:
                if listed := LISTED.search(line):
                    files.discard(listed[1])
                    if '"svg": true' in line:
                        files.discard(listed[1].removesuffix("png") + "svg")
    if theirs := sorted(name for name in files if cfg.svg or name.endswith("png")):
        raise FileExistsError(f"out is {str(out)!r}, which holds {theirs[0]}, a name that is to be written, of no "
                              "earlier generation: move it away, or name another folder")  # fmt: skip


def same_captions(metadata: Path, manifest: Path) -> bool:
    """Whether a metadata.jsonl is what ``write_metadata`` writes for a manifest."""
    with metadata.open(encoding="utf-8", errors="replace") as found, manifest.open(encoding="utf-8") as file:
        return all(line == own for line, own in zip_longest(found, map(metadata_line, file)))


def metadata_line(line: str) -> str:
    """A line of metadata.jsonl from one of the manifest: what is different between the files; "" of a damaged one."""
    try:
        about = json.loads(line)
        return json.dumps({name: about[name] for name in COLUMNS}, ensure_ascii=False) + "\n"
    except (ValueError, KeyError, TypeError):
        return ""


def write_metadata(out: Path, plan: Plan) -> None:
    """metadata.jsonl, a line for each file."""
    with (part := out / f".{METADATA}.part").open("w", encoding="utf-8") as file:
        file.writelines(map(metadata_line, plan.lines()))
    os.replace(part, out / METADATA)


def check_same(path: Path, plan: Plan) -> None:
    """Raises ConfigError unless the manifest in ``path`` is that of ``plan``."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, (old, new) in enumerate(zip_longest(file, plan.lines()), 1):
            if old == new:
                continue
            was: dict[str, Any] = json.loads(old) if old and old.endswith("}\n") else {}
            now: dict[str, Any] = json.loads(new) if new else {}
            what = next((key for key in {**now, **was} if was.get(key) != now.get(key)), "")
            raise ConfigError(
                f"{path.parent} cannot be resumed: line {number} of its list of files has {what} {was.get(what)!r}, "
                f"and these settings have {now.get(what)!r}; give the settings of its config.json, or another --out"
            )


def require_masks(cfg: GenerateCfg, channels: int) -> None:
    """Raises ConfigError for options of masks where a model draws ordinary images, which they would not change."""
    if channels == 1:
        return
    for name in ("threshold", "one_bit", "enlarge", "svg"):
        value, usual = getattr(cfg, name), getattr(GenerateCfg, name)
        if value != usual:
            raise ConfigError(f"{name} is {value}, but this model draws ordinary images, which it would not change: "
                              f"leave it at {usual}")  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A mask as it is written."""

    pixels: np.ndarray
    """uint8: [H,W] of 0 and 255, or [H,W,3]."""
    one_bit: bool = False
    path: str | None = None
    """Of an SVG file, where one is asked for."""
    frame: tuple[int, ...] = ()
    """H and W of what the path is in."""

    def png(self, about: dict[str, Any]) -> bytes:
        """A PNG file with its prompt and parameters as text chunks (``prompt``, and ``parameters`` in JSON)."""
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("prompt", about["text"])
        info.add_itxt("parameters", json.dumps(about, ensure_ascii=False))
        image = Image.fromarray(self.pixels)
        content = BytesIO()
        one_bit = self.one_bit and self.pixels.ndim == 2
        (image.convert("1", dither=Image.Dither.NONE) if one_bit else image).save(content, "png", pnginfo=info)
        return content.getvalue()

    def svg(self, about: dict[str, Any]) -> bytes:
        """An SVG file of the path with its prompt as title and its parameters, in JSON, as description."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.frame[1]} {self.frame[0]}">\n'
            f"<title>{as_xml(about['text'])}</title>\n<desc>{as_xml(json.dumps(about, ensure_ascii=False))}</desc>\n"
            f'<path fill-rule="evenodd" d="{self.path}"/>\n</svg>\n'
        ).encode()


def finished(p: np.ndarray, cfg: GenerateCfg) -> Finished:
    """What is written of probabilities [1,h,w], or of colours [3,H,W] in [0,1]."""
    if len(p) > 1:
        return Finished((p.transpose(1, 2, 0) * 255).round().clip(0, 255).astype("uint8"))
    from data.enlarge import enlarged, outlines

    mask = (p[0] > cfg.threshold).astype("uint8")
    path = None
    if cfg.svg:
        path = "".join("M" + " ".join(f"{x:.2f} {y:.2f}" for x, y in line.tolist()) + "Z" for line in outlines(mask))
    return Finished(enlarged(mask, cfg.enlarge) * 255, cfg.one_bit, path, mask.shape)


def as_xml(text: str) -> str:
    """Text for an XML file, without the characters that no such file can hold."""
    return html.escape("".join(c for c in text if c >= " " and c not in "\ufffe\uffff"), quote=False)


def write_mask(out: Path, about: dict[str, Any], mask: Finished) -> None:
    """Write a mask whose line of the manifest is ``about``. Raises MaskFileError where it cannot be written."""
    path = out / about["file_name"]
    if mask.path is not None:
        write_file(path.with_suffix(".svg"), mask.svg(about))
    write_file(path, mask.png(about))


def write_file(path: Path, content: bytes) -> None:
    """A file with this name is always whole. Raises MaskFileError where it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as reason:
        raise MaskFileError(f"{path} cannot be written ({reason.strerror}): the masks so far are whole; mend that and "
                            "go on with --resume True") from None  # fmt: skip
