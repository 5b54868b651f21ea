"""The words of captions of geometry; metrics/geometry.py says what each of them means, and measures it."""

import re
from dataclasses import astuple, dataclass

COUNTS = ("one", "two", "three", "four", "five", "many")
SIZES = ("small", "medium", "large")
SHAPES = ("hollow", "long", "round", "uneven")
PLACES = (
    ("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"),
)  # fmt: skip
NOTHING = "nothing"


@dataclass(frozen=True)
class Geometry:
    """One word for each property; an empty mask has the count "nothing" and no other word."""

    count: str
    size: str = ""
    shape: str = ""
    place: str = ""

    @property
    def caption(self) -> str:
        if self.count == NOTHING:
            return NOTHING
        return f"{self.count} {self.size} {self.shape} blob{'' if self.count == COUNTS[0] else 's'}, {self.place}"


    @property
    def numbers(self) -> list[int]:
        """Each word's number in WORDS; -1 for one that an empty mask has not."""
        return [words.index(word) if word else -1 for words, word in zip(WORDS, astuple(self), strict=True)]


WORDS = ((*COUNTS, NOTHING), SIZES, SHAPES, sum(PLACES, ()))
"""Of each property of Geometry, in its order."""
_CAPTION = re.compile(
    f"({'|'.join(COUNTS)}) ({'|'.join(SIZES)}) ({'|'.join(SHAPES)}) blobs?,? ({'|'.join(sum(PLACES, ()))})"
)


def parse(caption: str) -> Geometry | None:
    """The inverse of ``Geometry.caption``; None for any other text.

    Capitals, a full stop at the end, a missing comma and "center" make no difference.
    """
    plain = " ".join(caption.lower().split()).removesuffix(".").replace("center", "centre")
    if plain == NOTHING:
        return Geometry(NOTHING)
    found = _CAPTION.fullmatch(plain)
    return Geometry(*found.groups()) if found else None
