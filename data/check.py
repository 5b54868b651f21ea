"""What a folder holds, in words: what people look at before they train."""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from data.folder import Fitted, Reading
from data.split import canonical_hashes

_GREY_FILE = 0.1
_NAMED = 3
_MOSTLY = 0.6
_DARK_ON_WHITE = " (white is foreground: if what you drew is dark on white, invert the files)"


def summary(found: Reading, count_tokens: Callable[[str], int], max_tokens: int) -> dict[str, str]:
    """Title -> what there is to say of the usable images; ``count_tokens`` counts those of a prompt."""
    items = found.fitted
    named = list(zip(found.names, items, strict=True))
    told = {"images": f"{len(items):,} usable, {len(found.bad_images):,} bad"}
    if not items:
        return told
    told["sizes"] = _common(f"{item.width}x{item.height}" for item in items)
    if items[0].image.ndim == 2:
        grey = _files(named, lambda item: item.grey > _GREY_FILE)
        told["grey"] = f"{np.mean([item.grey for item in items]):.1%} of the pixels; in more than a tenth: {grey}"
        share = float(np.mean([item.area for item in items]))
        told["foreground"] = f"{share:.1%} of the pixels" + (_DARK_ON_WHITE if share > _MOSTLY else "")
        told["empty"] = _files(named, lambda item: item.area == 0)
        told["full"] = _files(named, lambda item: item.area == 1)
        told["lost"] = f"{_files(named, lambda item: item.emptied)} (empty once shrunk to the size of the training)"
    told["copies"] = _copies(found)
    return told | _captions(items, count_tokens, max_tokens)


def _files(named: list[tuple[str, Fitted]], which: Callable[[Fitted], bool]) -> str:
    """How many files, and the names of the first."""
    names = [name for name, item in named if which(item)]
    return f"{len(names):,}" + (f": {_first(names, ', ')}" if names else "")


def _first(names: list[str], between: str) -> str:
    return between.join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")


def _common(values: Iterable[str]) -> str:
    """The most frequent values with their numbers."""
    counts = Counter(values)
    shown = ", ".join(f"{value} ({count:,})" for value, count in counts.most_common(_NAMED))
    return shown + (f" and {len(counts) - _NAMED:,} others" if len(counts) > _NAMED else "")


def _copies(found: Reading) -> str:
    groups: dict[bytes, list[str]] = {}
    for name, digest in zip(found.names, canonical_hashes(np.stack([i.image for i in found.fitted])), strict=True):
        groups.setdefault(digest, []).append(name)
    same = [_first(names, " = ") for names in groups.values() if len(names) > 1]
    what = f"{len(found.fitted) - len(groups):,} equal another, maybe flipped, turned or shifted"
    return what + (f"; {same[0]}" if same else "")


def _captions(items: list[Fitted], count_tokens: Callable[[str], int], max_tokens: int) -> dict[str, str]:
    missing = sum(not item.listed.captioned for item in items)
    blank = sum(not item.listed.prompt.strip() for item in items)
    prompts = Counter(item.listed.prompt for item in items)
    tokens = {prompt: count_tokens(prompt) for prompt in prompts}
    cut = sum(prompts[prompt] for prompt, count in tokens.items() if count > max_tokens)
    default = next((repr(item.listed.prompt) for item in items if not item.listed.captioned), "")
    return {
        "captions": f"{missing:,} missing" + (f" (they get {default})" if missing else "") + f", {blank:,} blank",
        "prompts": f"{len(prompts):,} different: {_common(repr(prompt[:40]) for prompt in prompts.elements())}",
        "cut": f"{cut:,} prompts are longer than {max_tokens} tokens; the longest has {max(tokens.values())}",
    }
