"""WebDataset shards: tar files, on a disk or behind an address, of samples that share a name.

A sample is an image (``000123.png``) and maybe its caption (``000123.txt``), beside each other in the tar file. Nothing
is unpacked to disk, nothing but images and text is looked at, and no address is handed to a shell (the package
webdataset opens "pipe:" addresses as commands; here they are refused).
"""

import glob
import importlib
import io
import itertools
import os
import re
import tarfile
import time
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import numpy as np

from configs.data_cfg import DataCfg, ShardSource
from data.captions import decode_text
from data.fit import fit_masks, fit_rgb
from data.folder import EXTENSIONS
from data.images import decode_picture, shown
from data.masks import DataError, MaskSet

INSTALL = 'WebDataset shards need the package webdataset: .venv/bin/python -m pip install "webdataset>=1.0,<2"'
MOST_SHARDS = 1_000_000
LARGEST = 1 << 28  # bytes of one file in a shard
STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
END = bytes(1024)  # what every tar file ends with
RETRIES = 3
SPREAD = 16  # shards over which the masks that are read into memory are spread


def package(name: str = "webdataset") -> Any:
    """It, or a part of it, or what it brings. Raises ModuleNotFoundError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ModuleNotFoundError(INSTALL) from None


@dataclass(frozen=True)
class Sample:
    """One sample as it is stored."""

    shard: int
    """Index in the list of shards."""
    row: int
    """Number of the sample in its shard."""
    name: str
    """Such as "train-000001.tar/000123"."""
    image: bytes | None
    text: bytes | None


def list_shards(text: str, option: str, part: str = "train") -> list[str]:
    """Paths and addresses that ``text`` names, see ``ShardSource.train``; ``part`` is preferred in a folder.

    Raises:
        DataError: none found, braces that are no pattern, an address that is not read here, or a local file that is
            cut off.
    """
    named = [pattern.strip() for pattern in text.split("::")]
    too_many = DataError(f"{option} is {shown(text)!r}, more than {MOST_SHARDS:,} shards; name fewer")
    if any(_longest_range(pattern) > MOST_SHARDS for pattern in named):  # each is held whole when it is expanded
        raise too_many
    try:
        each = itertools.chain.from_iterable(_expanded(pattern, part) for pattern in named)
        found = list(itertools.islice(each, MOST_SHARDS + 1))
    except ValueError as error:
        raise DataError(f"{option} is {shown(text)!r}, whose braces are no pattern ({error}); write such as "
                        "masks-{0000..0127}.tar") from None  # fmt: skip
    if len(found) > MOST_SHARDS:
        raise too_many
    if not found:
        raise DataError(f"{option} is {shown(text)!r}, where there is no tar file; make shards with "
                        ".venv/bin/python -m scripts.make_shards, or name others")  # fmt: skip
    for shard in found:
        _require_whole(shard, option)
    return found


def _longest_range(pattern: str) -> int:
    """Of the ranges {first..last..step} of a pattern."""
    ranges = re.findall(r"\{(-?\d{1,4000})\.\.(-?\d{1,4000})(?:\.\.(-?\d{1,4000}))?\}", pattern)
    return max((abs(int(b) - int(a)) // max(1, abs(int(step or 1))) + 1 for a, b, step in ranges), default=0)


def _expanded(pattern: str, part: str) -> Iterator[str]:
    if os.path.isdir(folder := os.path.expanduser(pattern)):
        names = sorted(name for name in os.listdir(folder) if name.endswith(".tar") and not name.startswith("."))
        own = [name for name in names if name.startswith(f"{part}-")]
        both = any(name.startswith(("train-", "test-")) for name in names)
        yield from (os.path.join(folder, name) for name in (own if both or part != "train" else names))
        return
    for name in package("braceexpand").braceexpand(pattern) if "{" in pattern else (pattern,):
        if "*" in name and _scheme(name) is None:
            yield from sorted(glob.glob(os.path.expanduser(name)))
        else:
            yield name


def _scheme(shard: str) -> str | None:
    """What stands before the colon of an address; None for a path."""
    before, colon, _ = shard.partition(":")
    return before if colon and "/" not in before and len(before) > 1 else None


def _require_whole(shard: str, option: str) -> None:
    """Raise DataError for an address of an unknown kind, and for a local file that is missing or cut off."""
    scheme = _scheme(shard)
    if scheme is not None:
        if scheme not in ("http", "https", *STORES) or "://" not in shard:
            raise DataError(f"{shown(shard)} is no address that shards are read from; use a path, http(s):// or "
                            f"{', '.join(f'{name}://' for name in STORES)}")  # fmt: skip
        return
    path = os.path.expanduser(shard)
    if not os.path.isfile(path):
        raise DataError(f"the shard {shown(shard)} is not there; correct {option}, or make it")
    with open(path, "rb") as file:
        start = file.read(6)
        file.seek(max(0, os.path.getsize(path) - len(END)))
        if not start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) and file.read() != END:
            raise DataError(_cut_off(shard, "it does not end as a tar file does"))


def _cut_off(shard: str, why: object) -> str:
    return f"the shard {shown(shard)} is cut off or no tar file ({shown(str(why))}); copy or make it again"


@contextmanager
def _opened(shard: str) -> Iterator[IO[bytes]]:
    scheme = _scheme(shard)
    if scheme is None:
        opened: Any = open(os.path.expanduser(shard), "rb")  # noqa: SIM115  # closed below
    elif scheme in STORES:
        import fsspec

        try:
            opened = fsspec.open(shard, "rb").open()
        except ImportError:
            raise ModuleNotFoundError(
                f"{scheme}:// addresses need the package {STORES[scheme]}: "
                f".venv/bin/python -m pip install {STORES[scheme]}"
            ) from None
    else:
        opened = urllib.request.urlopen(shard, timeout=60)  # one of http and https, see _require_whole
    with opened:
        yield opened


class _Counted(io.RawIOBase):
    """A stream that knows whether it ended as a tar file does."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.tail = stream, b""

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(size)
        self.tail = (self.tail + content)[-len(END) :]
        return content


def _files(shard: str) -> Iterator[dict[str, Any]]:
    """What ``webdataset.tariterators.group_by_keys`` takes. Raises DataError for a shard that cannot be read."""
    try:
        with _opened(shard) as stream:
            counted = _Counted(stream)
            with tarfile.open(fileobj=counted, mode="r|*") as tar:
                for member in tar:
                    if member.isreg() and member.size > LARGEST:
                        raise DataError(f"the shard {shown(shard)} holds {shown(member.name)} of {member.size:,} "
                                        "bytes, too much for an image: make it again without it")  # fmt: skip
                    file = tar.extractfile(member) if member.isreg() else None
                    if file is not None:
                        yield {"fname": member.name, "data": file.read(), "__url__": shard}
                    tar.members = []  # type: ignore[attr-defined]  # undeclared: or all headers of the file would be kept
            while counted.read(1 << 16):
                pass
            if shard.endswith(".tar") and counted.tail != END:
                raise tarfile.ReadError("it does not end as a tar file does")
    except (tarfile.TarError, EOFError) as reason:
        raise DataError(_cut_off(shard, reason)) from None
    except (OSError, HTTPException) as reason:
        raise DataError(f"the shard {shown(shard)} cannot be read ({shown(str(reason))}); check it") from reason


def read_samples(shards: Sequence[str], shard: int, first: int = 0) -> Iterator[Sample]:
    """Samples of one shard in their order, from number ``first`` on; a lost connection is taken up again.

    Raises:
        DataError: the shard cannot be read, or is cut off.
    """
    place, failures = first, 0
    while True:
        try:
            for row, sample in enumerate(_grouped(shards[shard])):
                if row >= place:
                    image = next((sample[e[1:]] for e in EXTENSIONS if e[1:] in sample), None)
                    name = shown(f"{shards[shard].rpartition('/')[2]}/{sample['__key__']}")
                    yield Sample(shard, row, name, image, sample.get("txt"))
                    place, failures = row + 1, 0
            return
        except DataError:
            failures += 1
            if _scheme(shards[shard]) is None or failures > RETRIES:
                raise
            time.sleep(0.5 * 4 ** (failures - 1))


def _grouped(shard: str) -> Iterator[dict[str, Any]]:
    files = _files(shard)
    try:
        yield from package("webdataset.tariterators").group_by_keys(files)
    except ValueError as reason:
        if isinstance(reason, DataError):
            raise
        raise DataError(f"the shard {shown(shard)} holds a file twice ({shown(str(reason.args[0]))}); "
                        "make it again") from None  # fmt: skip
    finally:
        files.close()  # type: ignore[attr-defined]  # a generator, which has one


def decode(sample: Sample, cfg: DataCfg, default_prompt: str) -> tuple[np.ndarray, str]:
    """The image, fitted to ``cfg.image_size``, and its prompt.

    Raises:
        DataError: no image, or one that cannot be read, or a caption that is not UTF-8.
    """
    if sample.image is None:
        raise DataError(f"{sample.name} has no image; add one ({', '.join(EXTENSIONS)}), or remove it")
    pixels = decode_picture(io.BytesIO(sample.image), sample.name, cfg.channels == 3).pixels
    prompt = default_prompt
    if sample.text is not None:
        prompt = decode_text(sample.text, f"{sample.name}.txt").removesuffix("\n").removesuffix("\r")
    fitted = fit_rgb(pixels, cfg.image_size) if cfg.channels == 3 else fit_masks(pixels[None], cfg.image_size)[0]
    return fitted, prompt


class BadShare:
    """Counts samples that cannot be used."""

    def __init__(self, max_bad: float) -> None:
        self.max_bad, self.bad, self.total = max_bad, 0, 0

    def skip(self, error: DataError) -> None:
        self.bad += 1
        warnings.warn(f"{error} (skipped)", stacklevel=3)

    def require_few(self, at_least: int = 0) -> None:
        """Raise DataError where more than the allowed share of ``total`` (or of ``at_least``) samples were bad."""
        if self.bad > self.max_bad * max(self.total, at_least):
            raise DataError(
                f"{self.bad} of {self.total} samples cannot be used, more than {100 * self.max_bad:g} % "
                "(--data.source.max-bad); the warnings name them: make the shards again without them"
            )


def decoded(
    samples: Sequence[Sample], cfg: DataCfg, default_prompt: str, bad: BadShare
) -> list[tuple[Sample, np.ndarray, str]]:
    """Those that can be used, with image and prompt; the others are counted in ``bad``."""
    usable = []
    for sample in samples:
        bad.total += 1
        try:
            usable.append((sample, *decode(sample, cfg, default_prompt)))
        except DataError as error:
            bad.skip(error)
    return usable


def load(source: ShardSource, cfg: DataCfg) -> tuple[MaskSet, MaskSet | None]:
    """At most ``source.memory`` training masks, from several shards, and as many of test shards where there are such.

    Raises:
        DataError: no shards, cut-off ones, or more than ``source.max_bad`` of the samples unusable.
        ModuleNotFoundError: webdataset is not installed.
    """
    package()
    train = in_memory(train_shards(source), source, cfg)
    test = test_shards(source)
    return train, in_memory(test, source, cfg) if test else None


def train_shards(source: ShardSource) -> list[str]:
    return list_shards(source.train, "--data.source.train")


def test_shards(source: ShardSource) -> list[str]:
    """Empty where a share of the training shards is to be held out."""
    if source.test.strip():
        return list_shards(source.test, "--data.source.test", "test")
    if os.path.isdir(folder := os.path.expanduser(source.train)) and list(Path(folder).glob("test-*.tar")):
        return list_shards(source.train, "--data.source.train", "test")
    return []


def in_memory(shards: list[str], source: ShardSource, cfg: DataCfg) -> MaskSet:
    """The first masks of shards that are spread over the list, until ``source.memory`` are read. Raises DataError."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(shards))
    from_each = -(-source.memory // min(len(shards), SPREAD))
    bad = BadShare(source.max_bad)
    found: list[tuple[Sample, np.ndarray, str]] = []
    for shard in order.tolist():
        wanted = min(from_each, source.memory - len(found))
        if wanted <= 0:
            break
        found += decoded(list(itertools.islice(read_samples(shards, shard), wanted)), cfg, source.default_prompt, bad)
    bad.require_few()
    if not found:
        raise DataError(f"the {len(shards)} shards such as {shown(shards[0])} hold no sample; make them again")
    samples, images, prompts = zip(*found, strict=True)
    return MaskSet(np.stack(images), list(prompts), [sample.name for sample in samples])


def pieces(source: ShardSource, cfg: DataCfg) -> dict[str, Iterator[MaskSet]]:
    """Everything, a few thousand masks at a time: for writing other shards."""

    def of(shards: list[str]) -> Iterator[MaskSet]:
        bad = BadShare(source.max_bad)
        for shard in range(len(shards)):
            samples = read_samples(shards, shard)
            while some := list(itertools.islice(samples, 4096)):
                usable = decoded(some, cfg, source.default_prompt, bad)
                bad.require_few(at_least=1000)
                if usable:
                    raw, images, prompts = zip(*usable, strict=True)
                    yield MaskSet(np.stack(images), list(prompts), [sample.name for sample in raw])
        bad.require_few()

    package()
    test = test_shards(source)
    return {"train": of(train_shards(source))} | ({"test": of(test)} if test else {})
