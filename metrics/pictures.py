"""Pictures of a training as PNG files of its run folder; each says in its text what it shows."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

FOLDER = "pictures"
KEY = "picture"  # the PNG's text with tag, step and rows, in JSON


@dataclass(frozen=True)
class Picture:
    """One grid: what it shows, after how many steps of training, and the name of each row."""

    path: Path
    tag: str
    step: int
    rows: tuple[str, ...]


def keep_picture(run_dir: Path, tag: str, step: int, picture: Tensor, rows: Sequence[str]) -> None:
    """Write a picture [C,H,W] in [0,1]; a failure is a warning."""
    try:
        (run_dir / FOLDER).mkdir(exist_ok=True)
        about = PngInfo()
        about.add_itxt(KEY, json.dumps({"tag": tag, "step": step, "rows": list(rows)}))
        path = run_dir / FOLDER / f"{tag.replace('/', '-')}-{step:07d}.png"
        to_pil_image(picture).save(path, pnginfo=about, optimize=True)
    except (OSError, ValueError) as reason:
        warnings.warn(f"a picture of this training could not be written ({reason})", stacklevel=2)


def kept_pictures(run_dir: Path) -> dict[str, list[Picture]]:
    """Tag -> its pictures, oldest first; files that are not ours are left out."""
    found: dict[str, list[Picture]] = {}
    for path in sorted((run_dir / FOLDER).glob("*.png")):
        try:
            with Image.open(path) as image:
                image.load()
                about = json.loads(getattr(image, "text", {})[KEY])
            picture = Picture(path, str(about["tag"]), int(about["step"]), tuple(map(str, about["rows"])))
        except (OSError, ValueError, KeyError, TypeError, SyntaxError):
            continue
        found.setdefault(picture.tag, []).append(picture)
    return {tag: sorted(pictures, key=lambda own: own.step) for tag, pictures in found.items()}
