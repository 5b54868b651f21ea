"""Damaged files against their readers: ``python -m tests.fuzz [--images 10000] [--checkpoints 2000] [--first 0]``.

Case k is a function of k alone: a good file whose bits are flipped, bytes overwritten, cut out, moved or mixed with
those of another, and for checkpoints also their inner pickle, with calls of a command put into it. A reader must answer
or raise its own error that names the file. Anything else is a finding: another exception, a crash or hang of the
process that reads, or a command that ran. Prints a table; exits with 1 if there is a finding.
"""

import argparse
import io
import multiprocessing
import os
import pickle
import random
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LONGEST = 120.0  # seconds without a finished case are a hang
START = 900.0  # seconds that a process may take to import and to make its good files
MEMORY = 12 << 30  # bytes a reading process may map
CHUNK = 500  # cases per process
Outcome = tuple[int, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0, help="go on from this case (of each kind)")
    args = parser.parse_args()
    found = 0
    for kind, number in (("images", args.images), ("checkpoints", args.checkpoints)):
        began = time.monotonic()
        outcomes = run(kind, range(args.first, number))
        print(f"{kind}: {len(outcomes):,} files in {time.monotonic() - began:.0f} s")
        for what, count in Counter(what for _, what in outcomes).most_common():
            cases = [case for case, own in outcomes if own == what]
            print(f"  {count:7,}  {what}" + ("" if what in EXPECTED else f"   <- finding, cases {cases[:5]}"))
        found += sum(what not in EXPECTED for _, what in outcomes)
    print(f"findings: {found}")
    raise SystemExit(found > 0)


READY, READ, REFUSED = "ready", "read", "refused with a clear error"
EXPECTED = (READ, REFUSED)


def run(kind: str, cases: range) -> list[Outcome]:
    """The outcome of every case, read in processes that may die."""
    context = multiprocessing.get_context("spawn")
    outcomes: list[Outcome] = []
    at, end = cases.start, cases.stop
    while at < end:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(kind, at, min(at + CHUNK, end), theirs))
        child.start()
        theirs.close()
        last = min(at + CHUNK, end)
        if not ours.poll(START) or ours.recv() != READY:
            raise SystemExit(f"fuzz: the process that reads {kind} did not start within {START:g} s")
        while at < last:
            try:
                if not ours.poll(LONGEST):
                    child.kill()
                    outcomes.append((at, f"no answer within {LONGEST:g} s"))
                    at += 1
                    break
                outcomes.append(ours.recv())
                at += 1
            except EOFError:
                child.join()
                outcomes.append((at, f"the process died with {child.exitcode}"))
                at += 1
                break
        child.join()
        print(f"  {kind}: {at:,} of {end:,}", flush=True)
    return outcomes


def work(kind: str, first: int, last: int, answers: Any) -> None:
    """Read the cases from ``first`` to before ``last``, and send the outcome of each."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        judge = (images if kind == "images" else checkpoints)(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders written in C complain there
        answers.send(READY)
        for case in range(first, last):
            answers.send((case, judge(case)))


def images(folder: Path) -> Callable[[int], str]:
    """case -> outcome of reading a damaged image as a mask and in colour."""
    from data.images import read_picture
    from data.masks import DataError

    good = good_images()

    def judge(case: int) -> str:
        draw = random.Random(case)
        path = folder / f"{case}.{draw.choice(('png', 'jpg', 'tif', 'webp', 'bmp', 'gif'))}"  # names say nothing
        path.write_bytes(damaged(draw.choice(good), good, draw))
        outcomes = []
        for rgb in (False, True):
            try:
                picture = read_picture(path, rgb)
            except DataError as error:
                outcomes.append(REFUSED if path.name in str(error) else "an error that does not name the file")
            except BaseException as error:
                outcomes.append(f"{type(error).__name__}: {str(error)[:80]}")
            else:
                fits = picture.pixels.dtype == np.uint8 and picture.pixels.ndim == 2 + rgb and picture.pixels.size > 0
                fits = fits and (rgb or picture.pixels.max() <= 1) and 0 <= picture.grey <= 1
                outcomes.append(READ if fits else f"pixels of shape {picture.pixels.shape}")
        path.unlink()
        return next((what for what in outcomes if what not in EXPECTED), outcomes[0])

    return judge


def good_images() -> list[bytes]:
    """Small files of many kinds."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    blob = (np.hypot(*np.mgrid[-10:10, -12:12]) < 8).astype(np.uint8) * 255
    grey, colour, clear = Image.fromarray(blob), Image.fromarray(noise[..., :3].copy()), Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    pages = [Image.fromarray(255 - blob), Image.fromarray(blob.T.copy())]
    palette = colour.quantize(7)
    saved: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (grey, "PNG", {}), (grey.convert("1"), "PNG", {}), (Image.fromarray(blob.astype(np.uint16) * 257), "PNG", {}),
        (clear, "PNG", {"exif": exif}), (palette, "PNG", {"transparency": 2}), (grey.convert("LA"), "PNG", {}),
        (grey, "PNG", {"save_all": True, "append_images": pages[:1]}),
        (grey, "JPEG", {"exif": exif}), (colour, "JPEG", {"progressive": True}), (colour.convert("CMYK"), "JPEG", {}),
        (grey, "BMP", {}), (colour, "BMP", {}), (palette, "BMP", {}), (grey.convert("1"), "BMP", {}),
        (grey, "GIF", {"save_all": True, "append_images": pages}), (palette, "GIF", {"transparency": 1}),
        (grey, "TIFF", {"save_all": True, "append_images": pages}), (grey.convert("F"), "TIFF", {}),
        (Image.fromarray(blob.astype(np.int32)), "TIFF", {}), (colour.convert("CMYK"), "TIFF", {}),
        (grey.convert("1"), "TIFF", {"compression": "group4"}), (clear, "TIFF", {"compression": "tiff_lzw"}),
        (colour, "TIFF", {"compression": "tiff_adobe_deflate"}), (colour, "TIFF", {"compression": "jpeg"}),
        (colour, "WEBP", {}), (clear, "WEBP", {"lossless": True, "exif": exif}),
        (colour, "WEBP", {"save_all": True, "append_images": [colour.rotate(90)]}),
    ]  # fmt: skip
    files = []
    for image, form, how in saved:
        buffer = io.BytesIO()
        image.save(buffer, form, **how)
        files.append(buffer.getvalue())
    return files


def damaged(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """``content`` after one to three accidents, more of them near its beginning, where headers are."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        if not changed:
            break
        at = min(draw.randrange(len(changed)), draw.choice((64, 512, len(changed))))
        length = draw.randint(1, draw.choice((4, 64, max(1, len(changed) // 4))))
        accident = draw.randrange(7)
        if accident == 0:  # bits
            for _ in range(draw.randint(1, 16)):
                changed[min(at + draw.randrange(64), len(changed) - 1)] ^= 1 << draw.randrange(8)
        elif accident == 1:  # numbers at the ends of their range
            number = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
            raw = number.to_bytes(4, draw.choice(("little", "big")))
            changed[at : at + 4] = raw
        elif accident == 2:  # cut short
            del changed[max(1, draw.randrange(len(changed))) :]
        elif accident == 3:  # a piece missing
            del changed[at : at + length]
        elif accident == 4:  # bytes put in
            changed[at:at] = draw.randbytes(length)
        elif accident == 5:  # a piece of another file
            other = draw.choice(others)
            start = draw.randrange(len(other))
            changed[at : at + length * draw.randrange(2)] = other[start : start + length]
        else:  # a piece twice
            changed[at:at] = changed[at : at + length]
    return bytes(changed)


def checkpoints(folder: Path) -> Callable[[int], str]:
    """case -> outcome of loading a damaged or doctored checkpoint."""
    from autoencoder import load_autoencoder
    from diffusion import load_diffusion
    from models.checkpoint import CheckpointError

    flag = folder / "ran"
    for function, text in commands(flag):  # a careless reader is seen
        pickle.loads(b"\x80\x02" + call(function, text) + b".")
        flag.unlink()
    loaders = {"diffusion": load_diffusion, "autoencoder": load_autoencoder}
    good = good_checkpoints(folder)
    contents = [content for _, _, content in good]

    def judge(case: int) -> str:
        draw = random.Random(case)
        kind, suffix, content = draw.choice(good)
        path = folder / f"{case}{suffix}"
        path.write_bytes(doctored(content, contents, draw, flag))
        try:
            loaders[kind](path)
            outcome = READ
        except CheckpointError as error:
            outcome = REFUSED if path.name in str(error) else "an error that does not name the file"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
        path.unlink()
        if flag.exists():
            flag.unlink()
            return "A COMMAND IN THE FILE WAS RUN"
        return outcome

    return judge


def doctored(content: bytes, others: list[bytes], draw: random.Random, flag: Path) -> bytes:
    """A third damaged as it is, the others with a damaged or a doctored pickle inside, if there is one."""
    way = draw.randrange(3)
    if way == 0 or not zipfile.is_zipfile(io.BytesIO(content)):
        if way == 2 and content[:1] == b"\x80":  # the old format: pickles one after the other
            at = draw.randrange(2, len(content))
            return content[:at] + command(draw, flag) + content[at:]
        return damaged(content, others, draw)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            if name.endswith("/data.pkl"):
                if way == 1:
                    part = damaged(part, [part], draw)
                else:
                    at = draw.choice((2, draw.randrange(2, len(part)), len(part) - 1))  # after the header .. the end
                    part = part[:at] + command(draw, flag) + part[at:]
            new.writestr(name, part)
    return out.getvalue()


def command(draw: random.Random, flag: Path) -> bytes:
    """Pickle opcodes that call a function with one text when a careless reader meets them."""
    function, text = draw.choice(commands(flag))
    return call(function, text) + draw.choice((b"", b"0"))


def commands(flag: Path) -> list[tuple[str, str]]:
    """Functions with a text that makes them write ``flag``."""
    shell, python = f"touch {flag}", f"open({str(flag)!r}, 'w')"
    return [
        ("posix system", shell), ("os system", shell), ("subprocess getoutput", shell), ("builtins eval", python),
        ("builtins exec", python),
    ]  # fmt: skip


def call(function: str, text: str) -> bytes:
    called = f"c{function.replace(' ', chr(10))}\n".encode()
    return called + b"(X" + len(text).to_bytes(4, "little") + text.encode() + b"tR"


def good_checkpoints(folder: Path) -> list[tuple[str, str, bytes]]:
    """(kind, suffix, content) of small checkpoints in every form that can be met."""
    import torch

    from autoencoder import AutoencoderModule
    from diffusion import DiffusionModule
    from models.export import KEY, averaged, write_export
    from tests.conftest import TINY_1, TINY_2

    torch.set_num_threads(1)
    autoencoder = AutoencoderModule(TINY_1, "data")
    diffusion = DiffusionModule(TINY_2, autoencoder, "data")
    files = []
    for kind, module in (("autoencoder", autoencoder), ("diffusion", diffusion)):
        content: dict[str, Any] = {
            "state_dict": module.state_dict(), "global_step": 1,
            "hyper_parameters": {"_instantiator": "os.system", "command": f"touch {folder / 'ran'}"},
        }
        module.on_save_checkpoint(content)
        for zipped in (True, True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            files.append((kind, ".ckpt", buffer.getvalue()))
    write_export(folder / "good.safetensors", averaged(content["state_dict"], torch.bfloat16), content[KEY])
    files.append(("diffusion", ".safetensors", (folder / "good.safetensors").read_bytes()))
    return files


if __name__ == "__main__":
    main()
