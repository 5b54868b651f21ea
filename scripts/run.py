"""What the commands share: a user's mistake ends in one sentence and exit code 2, not in a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

MENDABLE_OS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


@contextmanager
def refuse_kindly(command: str) -> Iterator[None]:
    """Turn the errors that a user can mend into one sentence on stderr and exit code 2."""
    from configs.checks import ConfigError

    try:
        yield
    except (ConfigError, ModuleNotFoundError, *MENDABLE_OS) as error:
        reason: Exception = error
    except Exception as error:
        mendable = {"CheckpointError", "DataError", "SamplerMismatch"}
        if not any(cls.__name__ in mendable for cls in type(error).__mro__):
            raise
        reason = error
    else:
        return
    print(f"{command}: {reason}", file=sys.stderr)
    raise SystemExit(2)
