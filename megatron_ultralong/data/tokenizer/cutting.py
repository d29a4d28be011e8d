"""Long texts in pieces whose ids, one after the other, are those of the whole: strings and UTF-8 alike.

`Cuts` holds where the texts of one tokenizer may be cut (`cut_places` finds that out and has the argument); a tokenizer
without such places has no `Cuts`, and its texts stay whole.

Cost: every byte is looked at once and copied a few times, whatever stands there. A text that comes in blocks is held as
far as its next place only; a stretch without one is held whole, once.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T", str, bytes)

PIECE = 1 << 20
"""Characters (bytes of UTF-8) of a piece of a long text."""

_WINDOW = 1 << 12
_CHARACTER = 4
"""Bytes of UTF-8 that one may have."""


@dataclasses.dataclass(frozen=True)
class Cuts:
    """Places to cut the texts of one tokenizer."""

    pattern: re.Pattern[str]
    """Matches the one character behind a place; it looks at one more on either side at most."""
    barred: tuple[tuple[str, str], ...] = ()
    """No cut between such a pair of texts: an added token would lie across it, or see what is on its other side."""
    dropped: int = 0
    """Characters left out at a cut: the one space that the tokenizer itself puts before every text."""

    def pieces(self, text: T, size: int = PIECE) -> Iterator[T]:
        """The text in pieces of at least `size`; whole where there is no place to cut."""
        start = 0
        while len(text) - start > size and (cut := self._next(text, start + size, len(text))):
            yield text[start:cut]
            start = cut + self.dropped
        yield text[start:] if start else text

    def stream(self, blocks: Iterable[bytes], size: int = PIECE) -> Iterator[bytes]:
        """The same for UTF-8 that comes in blocks, which are let go with the piece that they end in."""
        held = io.BytesIO()  # the piece so far, but for what `text` holds; its last value is taken without a copy
        text, looked_at = b"", 0
        for block in blocks:
            text += block
            del block
            start, seen = 0, len(text) - self._reach  # beyond it an added token may not be all there
            while cut := self._next(text, max(looked_at + 1, start + size - held.tell()), seen):
                held.write(memoryview(text)[start:cut])
                yield held.getvalue()
                held = io.BytesIO()
                start = looked_at = cut + self.dropped
            kept = max(start, seen - self._reach)
            held.write(memoryview(text)[start:kept])
            text, looked_at = text[kept:], max(seen - kept, 0)
        held.write(text)
        del text
        yield held.getvalue()

    def _next(self, text: T, first: int, last: int) -> int:
        """The first place of `first` to `last` where the text may be cut, or 0."""
        for place in self._places(text, first, last) if first <= last else ():
            if first <= place <= last and not self._is_barred(text, place):
                return place
        return 0

    def _places(self, text: str | bytes, first: int, last: int) -> Iterator[int]:
        """Places by the pattern alone, those of `first` to `last` among them."""
        if isinstance(text, str):
            yield from (match.start() for match in self.pattern.finditer(text, first, last + 2))
            return
        begin, end = max(first - _CHARACTER, 0), min(last + 2 * _CHARACTER, len(text))
        while begin < end:
            while begin < end and text[begin] & 0xC0 == 0x80:  # not within a character
                begin += 1
            window = text[begin : min(begin + _WINDOW, end)].decode(errors="ignore")
            for match in self.pattern.finditer(window):
                yield begin + len(window[: match.start()].encode())
            begin += _WINDOW - 3 * _CHARACTER if begin + _WINDOW < end else _WINDOW

    def _is_barred(self, text: str | bytes, place: int) -> bool:
        if isinstance(text, str):
            return any(text.startswith(right, place) and text.endswith(left, 0, place) for left, right in self.barred)
        pairs = self._barred_bytes
        return any(text.startswith(right, place) and text.endswith(left, 0, place) for left, right in pairs)

    @functools.cached_property
    def _barred_bytes(self) -> list[tuple[bytes, bytes]]:
        return [(left.encode(), right.encode()) for left, right in self.barred]

    @functools.cached_property
    def _reach(self) -> int:
        """Bytes before and behind a place that decide about it."""
        return max((max(map(len, pair)) for pair in self._barred_bytes), default=0) + 3 * _CHARACTER
