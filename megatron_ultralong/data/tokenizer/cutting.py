"""Where a long text may be cut without changing its ids.

Where a tokenizer allows that (`is_cuttable`), a text is cut at "letter| letter" and encoded in pieces. For the split
patterns listed here that is exact: no token of theirs holds a letter followed by a space, none looks back, and the only
one that looks ahead begins with white space. So a token ends before such a space, whatever follows, and the rest is
split as if it stood alone. Letters are a to z and A to Z, so that UTF-8 can be cut as well as strings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T", str, bytes)

PIECE = 1 << 20
"""Characters (bytes of UTF-8) of a piece of a long text."""

_CUTTABLE_SPLITS = {  # Llama 3, Qwen 2, GPT-2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


def is_cuttable(tokenizer: dict[str, Any]) -> bool:
    """Whether `pieces` leaves the ids of this tokenizer.json as they are (the argument is in the module's docstring).

    A known split, no normalizer but NFC (which acts on neither letters before nor spaces after the cut), and no added
    token that could lie across a cut.
    """
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    splits = [step.get("pattern", {}).get("Regex") for step in steps if step.get("type") == "Split"]
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if len(levels) != 1 or levels[0].get("add_prefix_space") or len(splits) + 1 != len(steps):
        return False
    known = [split in _CUTTABLE_SPLITS for split in splits] or [bool(levels[0].get("use_regex", True))]
    normalizer = tokenizer.get("normalizer")
    return (
        known == [True]
        and bool(not splits or not levels[0].get("use_regex", True))
        and (normalizer is None or normalizer.get("type") == "NFC")
        and not any(token["rstrip"] or next_cut(token["content"], 0) for token in tokenizer.get("added_tokens", []))
    )


def next_cut(text: T, start: int) -> int:
    """First place after `start` where a cuttable text may be cut, or 0."""
    place = text.find(_space(text), start + 1)
    while place > 0 and not _may_cut(text, place):
        place = text.find(_space(text), place + 1)
    return max(place, 0)


def last_cut(text: T) -> int:
    """Last place where a cuttable text may be cut, or 0."""
    place = text.rfind(_space(text), 1)
    while place > 0 and not _may_cut(text, place):
        place = text.rfind(_space(text), 1, place)
    return max(place, 0)


def _space(text: T) -> T:
    return " " if isinstance(text, str) else b" "


def _may_cut(text: T, place: int) -> bool:
    around = text[place - 1 : place], text[place + 1 : place + 2]
    return all(letter.isascii() and letter.isalpha() for letter in around)


def pieces(text: T, size: int = PIECE) -> Iterator[T]:
    """The text in pieces of at least `size`, cut where that is exact; whole where there is no such place."""
    start = 0
    while len(text) - start > size and (cut := next_cut(text, start + size)):
        yield text[start:cut]
        start = cut
    yield text[start:] if start else text
