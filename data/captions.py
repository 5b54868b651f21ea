"""Captions beside images: metadata.jsonl, metadata.csv or manifest.jsonl, same-stem .txt, class subfolders."""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from data.images import shown
from data.masks import DataError

csv.field_size_limit(2**31 - 1)  # or a caption of 128 KiB is an error: the text encoder cuts what is too long

METADATA = ("metadata.jsonl", "metadata.csv", "manifest.jsonl")
"""Files that name images and their captions; the first one found in a folder is used."""

_STORAGE_NAMES = frozenset(
    ("data", "image", "images", "img", "imgs", "label", "labels", "mask", "masks", "test", "train", "val", "validation")
)


_MEANT = frozenset(("caption", "captions", "description", "prompt", "txt"))
"""What other programs call captions; where there is no ``text``, they would be lost without a word."""

Row = tuple[int, str, str | None]
"""Line number, file name, caption."""


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte-order mark.

    Raises:
        DataError: unreadable, or not UTF-8.
    """
    if not os.path.isfile(path):  # a pipe would be waited for
        raise DataError(f"{shown(path)} is not a file; remove it or write it anew")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read ({error.strerror}); check its permissions") from None
    return decode_text(content, shown(path))


def decode_text(content: bytes, name: str) -> str:
    """``read_text`` of a file's content, which errors call ``name``."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text (byte {error.start}); save it again as UTF-8") from None


def read_metadata(path: Path, root: Path) -> tuple[dict[Path, str | None], list[DataError]]:
    """Image file -> caption, or None where the line has no ``text``; and what is wrong, naming file and line.

    Wrong is a line that is not as it should be, a missing or doubly listed image, a path outside ``root``, and a file
    that lists nothing. ``file_name`` is relative to the folder of the metadata file; keys other than file_name and
    text are ignored, but refused where they are another name of captions and there is no text.
    """
    captions: dict[Path, str | None] = {}
    first_line: dict[Path, int] = {}
    bad: list[DataError] = []
    try:
        text = read_text(path)
    except DataError as error:
        return captions, [error]
    for row in (_csv_rows if path.suffix == ".csv" else _json_rows)(text, path):
        try:
            if isinstance(row, DataError):
                raise row
            line, file_name, caption = row
            image = _inside(path, line, file_name, root)
            if image in captions:
                again = f"lists {file_name!r} again (first in line {first_line[image]})"
                raise _bad(path, line, again, "keep one of them")
            captions[image], first_line[image] = caption, line
        except DataError as error:
            bad.append(error)
    if not captions and not bad:
        bad = [DataError(f"{shown(path)} lists no image; fill it, or remove it to take every image of the folder")]
    return captions, bad


def _bad(path: Path, line: int, what: str, remedy: str) -> DataError:
    return DataError(f"{shown(path)}, line {line}: {shown(what)}; {remedy}")


def _inside(path: Path, line: int, file_name: str, root: Path) -> Path:
    names = dict.fromkeys(own for name in (file_name, file_name.replace("\\", "/")) for own in _spellings(name))
    places = [Path(os.path.abspath(path.parent / name)) for name in names]
    image = next(filter(os.path.isfile, places), places[-1])
    if not image.is_relative_to(root):
        raise _bad(path, line, f"{file_name[:80]!r} lies outside {root}", "name files inside this folder")
    if not os.path.isfile(image):
        raise _bad(path, line, f"there is no file {file_name[:80]!r}", "correct the name or remove the line")
    return image


def _spellings(name: str) -> list[str]:
    """A name as it is, and with its accents as other systems store them: part of their letters, or apart."""
    return list(dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))))


def _json_rows(text: str, path: Path) -> Iterator[Row | DataError]:
    for line, row in enumerate(text.split("\n"), start=1):
        if row.strip():
            try:
                yield _json_row(line, row, path)
            except DataError as error:
                yield error


def _json_row(line: int, row: str, path: Path) -> Row:
    remedy = 'write {"file_name": "a.png", "text": "..."}'
    try:
        entry = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise _bad(path, line, f"not JSON ({error})", remedy) from None
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise _bad(path, line, f"no file_name in {row.strip()[:80]!r}", remedy)
    caption = entry.get("text")
    if "text" not in entry and (meant := _MEANT.intersection(entry)):
        raise _bad(path, line, f"captions are called {min(meant)!r}", "call them text, or otherwise if they are none")
    if not isinstance(caption, str | None):
        raise _bad(path, line, f"text is {str(caption)[:80]}, not a string", remedy)
    if caption and caption.encode("utf-8", "replace").decode() != caption:
        raise _bad(path, line, f"text {caption[:80]!r} holds half a character", remedy)
    return line, entry["file_name"], caption


def _csv_rows(text: str, path: Path) -> Iterator[Row | DataError]:
    remedy = "put text that holds commas in double quotes"
    blanks = ", " in text.split("\n", 1)[0]  # after each comma, also of the rows
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=blanks)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        if "file_name" not in header:
            found = f"the header {str(header)[:80]} has no file_name"
            yield _bad(path, 1, found, "begin the file with file_name,text")
            return
        if "text" not in header and (meant := _MEANT.intersection(header)):
            remedy = "call that column text, or otherwise if it is none"
            yield _bad(path, 1, f"the header calls captions {min(meant)!r}", remedy)
            return
        for row in reader:
            if len(row) == len(header):
                cells = dict(zip(header, row, strict=True))
                yield reader.line_num, cells["file_name"], cells.get("text")
            elif row:
                yield _bad(path, reader.line_num, f"{len(row)} cells where the header has {len(header)}", remedy)
    except csv.Error as error:
        yield _bad(path, reader.line_num, f"not CSV ({error})", remedy)


def sidecar(image: Path) -> str | None:
    """The text of the same-stem .txt file, runs of white space made one blank; None where there is no such file."""
    names = (f"{stem}{suffix}" for stem in _spellings(image.stem) for suffix in (".txt", ".TXT"))
    path = next(filter(os.path.isfile, map(image.with_name, names)), None)
    return None if path is None else " ".join(read_text(path).split())


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
