"""What the commands share: what goes wrong ends in one sentence, not in a traceback; freed memory is kept; they start
sooner."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from scripts.quick_imports import spare_torchmetrics

MENDABLE_OS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
MENDABLE = {  # by name: their modules take seconds to import
    "CheckpointError", "DataError", "DisagreementError", "MisconfigurationException", "SamplerMismatch",
}  # fmt: skip
ON_THE_WAY = {"SaveError", "NonFiniteError", "LostProcessError", "MaskFileError"}
OUT_OF_MEMORY = {"OutOfMemoryError", "MemoryError"}
SMALLER = "try a smaller --data.batch-size (with --train.accumulate for the same step) or --train.precision bf16-mixed"

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEEP = {  # parameter of glibc's allocator -> its value here, and its names in the environment
    M_MMAP_MAX: (0, ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")),  # no mappings, each of which ends with its tensor
    M_TRIM_THRESHOLD: (-1, ("MALLOC_TRIM_THRESHOLD_",)),  # nothing goes back
}


def keep_freed_memory() -> None:
    """Have glibc keep what tensors leave behind for the next ones, as large in every step, in the place of giving it
    back and asking for it anew, which the kernel clears page by page: up to 40 % of a step on a CPU (docs/speed.md).

    What the environment sets, by these names or in GLIBC_TUNABLES, stays so. Nothing is done with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return
    tuned = os.environ.get("GLIBC_TUNABLES", "")
    for parameter, (value, names) in KEEP.items():
        if not any(name in os.environ or tunable(name) in tuned for name in names):
            mallopt(parameter, value)


def tunable(name: str) -> str:
    """MALLOC_MMAP_MAX_ -> glibc.malloc.mmap_max"""
    return f"glibc.malloc.{name.removeprefix('MALLOC_').rstrip('_').lower()}"


@contextmanager
def refuse_kindly(command: str) -> Iterator[None]:
    """One sentence on stderr: with exit code 2 for what the user can mend, with 1 for what happened on the way."""
    from configs.checks import ConfigError

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold what a terminal cannot show
    keep_freed_memory()
    spare_torchmetrics()
    try:
        yield
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (ConfigError, ModuleNotFoundError, *MENDABLE_OS) as error:
        said, code = str(error), 2
    except Exception as error:
        names = {cls.__name__ for cls in type(error).__mro__}
        said, code = str(error), 1 if names & ON_THE_WAY else 2
        if names & OUT_OF_MEMORY:
            said, code = f"memory ran out ({str(error).split('.')[0][:100]}): {SMALLER}", 1
        elif isinstance(error, OSError) and error.errno is not None:  # a full disk, one that cannot be written to
            code = 1
        elif not names & (ON_THE_WAY | MENDABLE):
            raise
    else:
        return
    print(f"{command}: {said}", file=sys.stderr)
    raise SystemExit(code)
