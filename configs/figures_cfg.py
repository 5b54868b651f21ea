"""Drawing the figures of docs/objectives.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FiguresCfg:
    """Where they go."""

    out: str = "docs/figures"
    """Folder to write to; figures of the same names are replaced."""
