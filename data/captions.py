"""Captions beside images: metadata.jsonl, metadata.csv or manifest.jsonl, same-stem .txt, class subfolders."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from data.images import shown
from data.masks import DataError

METADATA = ("metadata.jsonl", "metadata.csv", "manifest.jsonl")
"""Files that name images and their captions; the first one found in a folder is used."""

_STORAGE_NAMES = frozenset(
    ("data", "image", "images", "img", "imgs", "label", "labels", "mask", "masks", "test", "train", "val", "validation")
)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte-order mark.

    Raises:
        DataError: unreadable, or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)} is not UTF-8 text (byte {error.start}); save it again as UTF-8") from None
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read ({error.strerror}); check its permissions") from None


def read_metadata(path: Path, root: Path) -> dict[Path, str | None]:
    """Image file -> caption, or None where the line has no ``text``; keys other than file_name and text are ignored.

    ``file_name`` is relative to the folder of the metadata file and must stay inside ``root``.

    Raises:
        DataError: naming file and line, for a line that is not as it should be, a missing or doubly listed image,
            or a path outside ``root``; and for a file that lists nothing.
    """
    rows = _csv_rows if path.suffix == ".csv" else _json_rows
    captions: dict[Path, str | None] = {}
    first_line: dict[Path, int] = {}
    for line, file_name, text in rows(read_text(path), path):
        image = _inside(path, line, file_name, root)
        if image in captions:
            raise _bad(path, line, f"lists {file_name!r} again (first in line {first_line[image]})", "keep one of them")
        captions[image], first_line[image] = text, line
    if not captions:
        raise DataError(f"{shown(path)} lists no image; fill it, or remove it to take every image of the folder")
    return captions


def _bad(path: Path, line: int, what: str, remedy: str) -> DataError:
    return DataError(f"{shown(path)}, line {line}: {shown(what)}; {remedy}")


def _inside(path: Path, line: int, file_name: str, root: Path) -> Path:
    image = Path(os.path.abspath(path.parent / file_name.replace("\\", "/")))
    if not image.is_relative_to(root):
        raise _bad(path, line, f"{file_name!r} lies outside {root}", "name files inside this folder")
    if not image.is_file():
        raise _bad(path, line, f"there is no file {file_name!r}", "correct the name or remove the line")
    return image


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, str, str | None]]:
    remedy = 'write {"file_name": "a.png", "text": "..."}'
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            entry = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise _bad(path, line, f"not JSON ({error})", remedy) from None
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise _bad(path, line, f"no file_name in {row.strip()[:80]!r}", remedy)
        caption = entry.get("text")
        if not isinstance(caption, str | None):
            raise _bad(path, line, f"text is {caption!r}, not a string", remedy)
        if caption and shown(caption) != caption:
            raise _bad(path, line, f"text {caption[:80]!r} holds half a character", remedy)
        yield line, entry["file_name"], caption


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, str, str | None]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if "file_name" not in header:
            raise _bad(path, 1, f"the header {header!r} has no file_name", "begin the file with file_name,text")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                found = f"{len(row)} cells where the header has {len(header)}"
                raise _bad(path, reader.line_num, found, "put text that holds commas in double quotes")
            cells = dict(zip(header, row, strict=True))
            yield reader.line_num, cells["file_name"], cells.get("text")
    except csv.Error as error:
        raise _bad(path, reader.line_num, f"not CSV ({error})", "put text that holds commas in double quotes") from None


def sidecar(image: Path) -> str | None:
    """The text of the same-stem .txt file, runs of white space made one blank; None where there is no such file."""
    path = image.with_suffix(".txt")
    return " ".join(read_text(path).split()) if path.is_file() else None


def class_name(image: Path, root: Path, root_holds_images: bool) -> str | None:
    """The name of the top-level subfolder that holds ``image`` at any depth, underscores made blanks.

    None where subfolders are mere storage: when ``root`` itself holds images, or the name is one such as "images",
    "masks" or "train", or is not UTF-8.
    """
    parts = image.relative_to(root).parts
    if root_holds_images or len(parts) < 2 or parts[0].lower() in _STORAGE_NAMES:
        return None
    name = " ".join(parts[0].replace("_", " ").split())
    return name if name.isprintable() else None
