"""Files that are whole or not there: whatever stops a program, no file of a final name is half written."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

PREFIX, SUFFIX = ".", ".part"
PARTS_ABOUT = "about.pt"  # what makes a folder a checkpoint in parts (models/parts.py)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a file beside ``path``; it takes the name ``path`` once it is on the disk.

    Whatever ``write`` raises leaves no file behind, and what was at ``path`` as it was.
    """
    number, name = tempfile.mkstemp(prefix=f"{PREFIX}{path.name}.", suffix=SUFFIX, dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~umask())  # mkstemp's files are for their owner alone
        take_place(Path(name), path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """``write_whole`` of UTF-8 text."""
    write_whole(path, lambda file: file.write(text.encode()))


def same_file(source: Path, path: Path) -> None:
    """Make ``path`` a second name of ``source``'s content, without writing it again where the file system can."""
    link = path.with_name(f"{PREFIX}{path.name}.link{SUFFIX}")
    link.unlink(missing_ok=True)
    try:
        if source.is_symlink():
            link.symlink_to(os.readlink(source))
        else:
            os.link(source, link)
    except OSError:  # such as FAT
        write_whole(path, lambda file: file.write(source.read_bytes()))
        return
    take_place(link, path)
    link.unlink(missing_ok=True)  # two names of one file are left as they are by replace
    _sync_folder(path.parent)


def take_place(new: Path, path: Path) -> None:
    """Give ``new``, a file or link beside ``path``, that name, whatever file or checkpoint in parts has it: the copy of
    a run has a folder where there was a link to one. Raises OSError for any other folder.
    """
    if path.is_symlink() or not (path / PARTS_ABOUT).is_file():
        os.replace(new, path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{path.name}.", suffix=SUFFIX, dir=path.parent))
    os.rename(path, aside)
    try:
        os.replace(new, path)
    except OSError:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed program left half written in ``folder``; nobody else may be writing there."""
    for part in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink()


def umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """The new name survives a loss of power. Not every system can do this for a folder."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, or of all files of a folder in the order of their names, in hexadecimal."""
    digest = hashlib.sha256()
    for each in sorted(Path(path).iterdir()) if Path(path).is_dir() else [path]:
        with open(each, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
