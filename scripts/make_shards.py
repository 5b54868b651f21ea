"""Write WebDataset shards of any masks that are read here: ``python -m scripts.make_shards PRESET --out FOLDER``.

Each mask becomes a PNG file and its prompt a .txt file, beside each other in a tar file; see configs/data_cfg.py for
how they are read. Masks are written as they are read, a few thousand at a time, so folders may be larger than memory.
"""

import io
import itertools
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from configs.checks import require
from configs.cli import parse_preset
from configs.make_shards_cfg import MakeShardsCfg
from configs.presets import STAGE_2
from configs.whole_file import write_whole
from scripts.run import refuse_kindly

if TYPE_CHECKING:
    import numpy as np

    from data.masks import MaskSet

PRESETS = {name: (lambda make=make: MakeShardsCfg(make().data)) for name, make in STAGE_2.items()}


def main(argv: list[str] | None = None) -> None:
    _, cfg = parse_preset(PRESETS, argv, "python -m scripts.make_shards")
    with refuse_kindly("make_shards"):
        require(bool(cfg.out.strip()), "out", cfg.out, "the folder to make: add --out FOLDER")
        make_shards(cfg)


def make_shards(cfg: MakeShardsCfg) -> Path:
    """Write all shards; returns their folder, which is there only once all of them are in it.

    Raises:
        DataError: masks that cannot be used.
        FileExistsError: the folder is already there, or another process is writing it.
        ModuleNotFoundError: webdataset is not installed.
    """
    from data.masks import DataError
    from data.shards import package
    from data.sources import all_pieces, prepare

    package()
    out = Path(cfg.out).expanduser()
    if os.path.lexists(out):
        raise FileExistsError(f"{out} is already there: name another folder with --out")
    prepare(cfg.data)
    part = out.with_name(f".{out.name}.part")
    try:
        part.mkdir(parents=True)
    except FileExistsError:
        raise FileExistsError(
            f"{part} is already there: another make_shards is at work on {out}, so wait for it, or one was killed, "
            "so remove that folder"
        ) from None
    try:
        for name, masks in all_pieces(cfg.data).items():
            shards, samples = write_part(part, name, masks, cfg.samples)
            if not samples:
                raise DataError(f"{name} has no mask that can be used: .venv/bin/python -m scripts.check_data FOLDER "
                                "tells why")  # fmt: skip
            print(f"{name}: {samples:,} masks in {shards} shards", flush=True)
        os.rename(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    print(f"shards: {out}, to be read with: data.source:shards --data.source.train {out}")
    return out


def write_part(folder: Path, name: str, pieces: "Iterator[MaskSet]", samples: int) -> tuple[int, int]:
    """NAME-000000.tar and so on, of ``samples`` masks each but the last; returns how many shards and masks."""
    rows = ((image, prompt) for masks in pieces for image, prompt in zip(masks.images, masks.prompts, strict=True))
    shards = done = 0
    while some := list(itertools.islice(rows, samples)):
        write_whole(folder / f"{name}-{shards:06d}.tar", partial(write_shard, rows=some, first=done))
        shards, done = shards + 1, done + len(some)
    return shards, done


def write_shard(file: IO[bytes], rows: "list[tuple[np.ndarray, str]]", first: int) -> None:
    """Images with prompts as samples whose names are numbers from ``first`` on; the same rows give the same bytes."""
    from data.shards import package

    with package().TarWriter(file, mtime=0, encoder=False) as tar:
        for number, (image, prompt) in enumerate(rows, first):
            tar.write({"__key__": f"{number:09d}", "png": as_png(image), "txt": prompt.encode()})


def as_png(image: "np.ndarray") -> bytes:
    """A mask [H,W] of 0/1 in one bit per pixel, or an RGB image [H,W,3] of 0..255."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.astype(bool) if image.ndim == 2 else image).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
