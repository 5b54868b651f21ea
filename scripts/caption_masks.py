"""Give masks captions from their geometry: ``python -m scripts.caption_masks FOLDER`` (words: metrics/geometry.py)."""

import json
from collections import Counter
from pathlib import Path

from configs.caption_masks_cfg import CaptionMasksCfg
from configs.checks import ConfigError
from configs.cli import parse
from configs.data_cfg import FolderSource
from configs.whole_file import write_text
from scripts.run import refuse_kindly


def main(argv: list[str] | None = None) -> None:
    about = "Give masks captions from their geometry."
    cfg: CaptionMasksCfg = parse(CaptionMasksCfg, argv, "python -m scripts.caption_masks", about)
    with refuse_kindly("caption_masks"):
        caption(cfg)


def caption(cfg: CaptionMasksCfg) -> Path:
    """Write metadata.jsonl, which lists every usable mask of the folder with its caption; returns its path.

    Raises:
        DataError: a folder without masks, or with captions that cannot be read.
        FileExistsError: there is such a file (without ``overwrite``).
        ConfigError: a metadata file in a subfolder, which would hide the new one.
    """
    import torch

    from data.captions import METADATA
    from data.folder import metadata_files, read_folder
    from metrics.geometry import describe

    found = read_folder(cfg.path, "PATH", "", cfg.data, METADATA[0] if cfg.overwrite else "")
    out = found.root / METADATA[0]
    if out.exists() and not cfg.overwrite:
        raise FileExistsError(f"{out} is already there: move it away, or replace its captions by "
                              f".venv/bin/python -m scripts.caption_masks {cfg.path} --overwrite True")  # fmt: skip
    masks = found.usable(FolderSource.max_bad)
    deeper = [path for path in metadata_files(found.root) if path.parent != found.root]
    if deeper:
        raise ConfigError(f"{deeper[0]} has the last word in its folder: move it away, or name a folder below it")
    rows = []
    for item, geometry in zip(found.fitted, describe(torch.from_numpy(masks.images)), strict=True):
        keep = item.listed.captioned and not cfg.overwrite
        file_name = item.listed.path.relative_to(found.root).as_posix()
        rows.append({"file_name": file_name, "text": item.listed.prompt if keep else geometry.caption})
    write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
    common = ", ".join(f"{text!r} ({count})" for text, count in Counter(row["text"] for row in rows).most_common(3))
    print(f"captions: {out}, {len(rows):,} masks, such as {common}")
    for name in METADATA[1:]:
        if (found.root / name).exists():
            print(f"From now on {out.name} counts, and {found.root / name} does not.")
    return out


if __name__ == "__main__":
    main()
