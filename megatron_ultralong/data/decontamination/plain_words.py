"""Texts as words that overlap is counted in: what a text is, not how it was typeset.

A text is folded to small letters, its punctuation is deleted, and it is split at white space: of ASCII what
lm-evaluation-harness does (decontamination/janitor.py, after GPT-3, arXiv 2005.14165, appendix C), where "don't" is one
word "dont". Beyond ASCII letters are folded too (str.casefold), every character of Unicode's categories P goes, and in
scripts without spaces (Han, kana, Thai, Lao, Burmese, Khmer) each character is a word.

All of it looks at one character at a time, so a text may be cut at any ASCII space. Cost: `translate` and `split` of
the standard library for ASCII; a stretch of other characters is folded once and remembered.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt

_OTHERS = re.compile(rb"[\x80-\xff]+")
_UPPER, _LOWER = string.ascii_uppercase.encode(), string.ascii_lowercase.encode()
_SMALL = bytes.maketrans(_UPPER + b"\x1c\x1d\x1e\x1f", _LOWER + b"    ")
_PUNCTUATION = string.punctuation.encode()
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
_PIECE = 1 << 20


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script that writes words without spaces between them."""
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


def words(text: bytes) -> list[bytes]:
    """The words of a text in UTF-8; bytes that are none count as U+FFFD, a letter."""
    if not text.isascii():
        text = _OTHERS.sub(lambda found: _folded(found[0]), text)
    return text.translate(_SMALL, _PUNCTUATION).split()


@functools.lru_cache(1 << 16)
def _folded(stretch: bytes) -> bytes:
    """A stretch of characters beyond ASCII, folded; what that makes of ASCII is a letter."""
    kept = []
    for letter in stretch.decode(errors="replace").casefold():
        if letter.isspace():
            kept.append(" ")
        elif is_unspaced(letter) and not unicodedata.category(letter).startswith("P"):
            kept.append(f" {letter} ")
        elif not unicodedata.category(letter).startswith("P"):
            kept.append(letter)
    return "".join(kept).encode()


def document_words(tokens: npt.NDArray[Any], table: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The words of a document, in pieces of 2^20 tokens, so that a long one is never held whole.

    Args:
        tokens: integers [n], its ids.
        table: the bytes of each id.
    """
    rest = b""
    for begin in range(0, len(tokens), _PIECE):
        text = rest + b"".join(map(table.__getitem__, tokens[begin : begin + _PIECE].tolist()))
        cut = max(text.rfind(b" "), text.rfind(b"\n"), 0) if begin + _PIECE < len(tokens) else len(text)
        rest = text[cut:]
        yield words(text[:cut])
