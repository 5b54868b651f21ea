"""Command line -> config, and config <-> plain dictionary."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import tyro

from configs.checks import ConfigError, first_line

Cfg = TypeVar("Cfg")
DATED = re.compile(r"-stage[12](-\d{8}-\d{6}(-\d+)?)?$")  # what a run folder's name has after that of its preset
CHOICE = re.compile(r"[a-z_.]+:[a-z0-9-]+")  # such as sampler:ddim


@overload
def parse(
    default: type[Cfg], argv: Sequence[str] | None, prog: str, description: str = "", *, flags: bool = False
) -> Cfg: ...


@overload
def parse(
    default: Cfg, argv: Sequence[str] | None, prog: str, description: str = "", *, flags: bool = False
) -> Cfg: ...


def parse(
    default: Any, argv: Sequence[str] | None, prog: str, description: str = "", *, flags: bool = False
) -> Any:
    """The config that ``argv`` asks for, starting from a default instance (or from a class with defaults).

    Without ``argv``, the words of this process's command line.

    With ``flags``, a switch is "--quick" instead of "--quick True".

    Prints one sentence and exits with 2 for unknown names (with the near ones) and for values that cannot work.
    """
    argv = sys.argv[1:] if argv is None else argv
    cls: Any = default if isinstance(default, type) else type(default)
    start: dict[str, Any] = {} if isinstance(default, type) else {"default": default}
    cli: Any = tyro.cli  # its overloads cannot tell a class from an instance
    markers: list[Any] = [tyro.conf.CascadeSubcommandArgs]
    if not flags:
        markers.append(tyro.conf.FlagConversionOff)
    if not any(CHOICE.fullmatch(arg) for arg in argv):
        markers.append(tyro.conf.AvoidSubcommands)  # --help then lists the fields of the chosen kinds too
    try:
        try:
            return cli(
                cls,
                args=list(argv),
                prog=prog,
                description=description or cls.__doc__,
                config=tuple(markers),
                **start,
            )
        finally:
            if sys.stdout is not None:  # closed from the beginning (>&-)
                sys.stdout.flush()
    except BrokenPipeError:  # --help | head: nobody wants the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it again when it ends
        raise SystemExit(128 + 13) from None  # as a shell calls what SIGPIPE ends
    except ConfigError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parse_preset(
    presets: Mapping[str, Callable[[], Cfg]], argv: Sequence[str] | None, prog: str, *, files: bool = False
) -> tuple[str, Cfg]:
    """PRESET [--overrides] -> the preset's name and its config; without a name, the first preset.

    With ``files``, the config.json of an earlier training can stand in the place of a preset; the name is that of its
    run folder then.
    """
    name, rest = next(iter(presets)), list(sys.argv[1:] if argv is None else argv)
    if rest and not rest[0].startswith("-") and ":" not in rest[0]:
        name, rest = rest[0], rest[1:]
    first = presets[next(iter(presets))]()
    is_file = files and name.endswith(".json")
    if is_file:
        default = _read(type(first), Path(name).expanduser(), prog)
    elif name in presets:
        default = presets[name]()
    else:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0.4)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        print(f"{prog}: there is no preset {name!r}{guess} Presets: {', '.join(presets)}", file=sys.stderr)
        raise SystemExit(2)
    choices = "Other kinds: " + ", ".join(_choices(type(first))) + " (before their own options)."
    described = "\n".join(f"{key}: {(make.__doc__ or '').strip()}" for key, make in presets.items())
    what = "PRESET or config.json" if files else "PRESET"
    about = f"{prog} [{what}] [--overrides]. Shown: the values of {name!r}. {choices}\n\nPresets\n{described}"
    cfg = parse(default, rest, f"{prog} {name}", about)
    return DATED.sub("", Path(name).expanduser().resolve().parent.name) if is_file else name, cfg


def _read(cls: type[Cfg], path: Path, prog: str) -> Cfg:
    """The config in a training's config.json. Prints one sentence and exits with 2 where it holds none of ``cls``."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict) or plain.get("type") != cls.__name__:
            raise ConfigError(f"it holds no {cls.__name__}: name the config.json of a training of this stage")
        return from_dict(cls, plain)
    except (OSError, ValueError) as error:
        print(f"{prog}: {path} cannot be read: {first_line(error, 200)}", file=sys.stderr)
        raise SystemExit(2) from None


def _choices(cls: type, prefix: str = "") -> list[str]:
    """Every "field:kind" that the command line of a config class takes."""
    found = []
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for member in typing.get_args(hint) if typing.get_origin(hint) is typing.Union else (hint,):
            for extra in getattr(member, "__metadata__", ()):
                found.append(f"{prefix}{name}:{extra.name}")
        if dataclasses.is_dataclass(hint):
            found += _choices(typing.cast(type, hint), f"{prefix}{name}.")
    return found


def to_dict(cfg: Any) -> dict[str, Any]:
    """A dataclass as a dictionary of plain values; each nested dataclass says its ``type``."""
    plain: dict[str, Any] = {"type": type(cfg).__name__}
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def from_dict(cls: type[Cfg], plain: Mapping[str, Any]) -> Cfg:
    """Inverse of :func:`to_dict`. Raises ConfigError for unknown or missing fields; every value is validated again."""
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(typing.cast(Any, cls))}
    unknown = set(plain) - names - {"type"}
    if unknown:
        raise ConfigError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}: the file was made by another version")
    values = {name: _revive(hints[name], plain[name]) for name in names & set(plain)}
    for name, value in values.items():
        if not _fits(hints[name], value):
            wanted = hints[name].__name__ if isinstance(hints[name], type) else str(hints[name]).replace("typing.", "")
            raise ConfigError(f"{cls.__name__}.{name} is {value!r:.80}, but it must be {wanted}")
    try:
        return cls(**values)
    except (TypeError, OverflowError) as error:
        raise ConfigError(f"{cls.__name__} cannot be read: {error}") from None


def _revive(hint: Any, value: Any) -> Any:
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, Mapping):
        classes: dict[str, Any] = {
            cls.__name__: cls for member in members if dataclasses.is_dataclass(member)
            for cls in (member, *member.__subclasses__())  # type: ignore[union-attr]  # a class where it is no instance
        }
        kind = value.get("type", next(iter(classes), None))
        if not isinstance(kind, str) or kind not in classes:
            raise ConfigError(f"a config of type {kind!r} is unknown here; known: {', '.join(classes)}")
        return from_dict(typing.cast(Any, classes[kind]), value)
    is_tuple = any(typing.get_origin(member) is tuple for member in members)
    return tuple(value) if is_tuple and isinstance(value, list) else value


def _fits(hint: Any, value: Any) -> bool:
    """Whether ``value`` is of the type of a field: a plain type, a config, a choice, or tuples and unions of them."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(member, value) for member in members)
    if origin is typing.Literal:
        return any(type(value) is type(member) and value == member for member in members)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(members[0], part) for part in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def as_text(cfg: Any, indent: str = "") -> str:
    """The resolved config, a field a line."""
    lines = []
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            lines += [f"{indent}{field.name}: {type(value).__name__}", as_text(value, indent + "  ")]
        else:
            lines.append(f"{indent}{field.name} = {value!r}")
    return "\n".join(line for line in lines if line)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Fields in which two configs differ, as "data.batch_size: 128 -> 64"."""
    if type(old) is not type(new):
        return [f"{prefix.rstrip('.')}: {type(old).__name__} -> {type(new).__name__}"]
    found = []
    for field in dataclasses.fields(old):
        a, b = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(a):
            found += differences(a, b, f"{prefix}{field.name}.")
        elif a != b:
            found.append(f"{prefix}{field.name}: {a!r} -> {b!r}")
    return found
