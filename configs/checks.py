"""The range checks that every config shares; each raises ``ConfigError`` with the field, the value and the remedy."""

import math
from collections.abc import Collection


class ConfigError(ValueError):
    """A config value that cannot work; the message names the field, the value and what to do."""


def first_line(error: BaseException, most: int = 150) -> str:
    """The first ``most`` letters of what an error of another library says; its kind if it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:most]


def require(ok: bool, field: str, value: object, rule: str) -> None:
    """Raise ``ConfigError`` unless ``ok``: ``field`` is ``value`` but must obey ``rule``."""
    if not ok:
        raise ConfigError(f"{field} is {value!r}, but it must be {rule}")


def positive(field: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, field, value, "a positive number")


def fraction(field: str, value: float, *, below_one: bool = False) -> None:
    rule = "at least 0 and below 1" if below_one else "between 0 and 1"
    require(0.0 <= value <= 1.0 and not (below_one and value == 1.0), field, value, rule)


def non_negative(field: str, value: float) -> None:
    require(math.isfinite(value) and value >= 0, field, value, "zero or a positive number")


def one_of(field: str, value: object, allowed: Collection[object]) -> None:
    require(value in allowed, field, value, f"one of {', '.join(map(str, allowed))}")
