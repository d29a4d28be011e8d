"""Real text to hide things in, cut into words whose tokens are counted once: any stretch of it is a slice.

A word is what stands between spaces, with the spaces before it and a line break behind it; a Chinese, Japanese or
Korean character is one by itself. Text is repeated from its beginning when it ends, as RULER's haystack is.

Cost: one encoding of the corpus' words, as far as they are needed; 25 bytes a word. A slice of a million tokens is a
copy of 4 MB.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.counting import Counter, counter_of
from megatron_ultralong.evaluation.corpus_texts import iterate_texts, texts_fingerprint
from megatron_ultralong.files import atomic_file

Shape = Literal["prose", "lines"]
"""All white space is one space, as RULER has it; or lines are kept, without blank ones."""

_WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_WORD = re.compile(rf" *(?:[{_WIDE}]|[^ \n{_WIDE}]{{1,64}})\n?| +\n?|\n")
_BREAK = re.compile("[.!?][\"'\u201d\u2019)\\]]*(?: (?=[\"'\u201c\u2018(\\[]*[A-Z0-9])|\n)|[。！？][”’」』）]*\n?|\n")  # noqa: RUF001
"""Ends of sentences, with the space behind them, and of lines."""
_BATCH = 1 << 18


class Filler:
    """A text by words.

    Args:
        text: what there is.
        ends: offset behind each word, ascending; the last is the text's length. int64 [words].
        tokens: of each word as it stands in the text, [words].
        breaks: offsets where something may be inserted: beginnings of sentences, or of lines. The first is 0.
        join: what stands between the text's end and its beginning.
    """

    def __init__(
        self,
        text: str,
        ends: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.integer],
        breaks: npt.NDArray[np.int64],
        join: str,
    ) -> None:
        self.text, self.join, self._ends, self._breaks, self._tokens = text, join, ends, breaks, tokens
        self._sums = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])
        self.words, self.tokens = len(ends), int(self._sums[-1])

    def from_word(self, start: int) -> Stretch:
        """The text from a word on, as a plan."""
        return Stretch(self, start % self.words)

    def first_words(self) -> npt.NDArray[np.int64]:
        """The words that begin a sentence or line."""
        found = np.searchsorted(self._ends, self._breaks, side="right")
        return np.unique(found[found < self.words])

    def planned(self, end: int) -> int:
        """Tokens of the first `end` words, of the text repeated."""
        times, rest = divmod(end, self.words)
        return times * self.tokens + int(self._sums[rest])

    def word_at(self, tokens: int) -> int:
        """The most words from the beginning that have at most so many tokens, of the text repeated."""
        times, rest = divmod(tokens, self.tokens)
        return times * self.words + int(np.searchsorted(self._sums, rest, side="right")) - 1

    def offset(self, word: int) -> int:
        """Offset in the text repeated behind so many words."""
        times, rest = divmod(word, self.words)
        return times * (len(self.text) + len(self.join)) + (int(self._ends[rest - 1]) if rest else 0)

    def slice(self, begin: int, end: int) -> str:
        """Characters `begin` to `end` of the text repeated."""
        period = len(self.text) + len(self.join)
        first = begin // period
        times = -(-end // period) - first
        if times <= 1:
            return self.text[begin - first * period : end - first * period]
        whole = (self.text + self.join) * times
        return whole[begin - first * period : end - first * period]

    def breaks(self, begin: int, end: int) -> npt.NDArray[np.int64]:
        """Breaks of `begin` <= b <= `end` in the text repeated, both ends among them, relative to `begin`."""
        period = len(self.text) + len(self.join)
        turns = np.arange(begin // period, end // period + 1) * period
        found = (turns[:, None] + self._breaks[None, :]).ravel()
        found = found[(found > begin) & (found < end)]
        return np.concatenate([[0], found - begin, [end - begin]])

    def tokens_before(self, offset: int) -> int:
        """Planned tokens of the text repeated up to an offset."""
        times, rest = divmod(offset, len(self.text) + len(self.join))
        return times * self.tokens + int(self._sums[np.searchsorted(self._ends, rest, side="right")])


class Stretch:
    """A filler from one of its words on; a `fitting.Plan` whose units are words."""

    def __init__(self, filler: Filler, start: int) -> None:
        self._filler, self._start = filler, start
        self._skipped, self._begin = filler.planned(start), filler.offset(start)

    def planned(self, count: int) -> int:
        """See `fitting.Plan`."""
        return self._filler.planned(self._start + count) - self._skipped

    def units(self, tokens: int) -> int:
        """See `fitting.Plan`."""
        return max(self._filler.word_at(self._skipped + max(tokens, 0)) - self._start, 0)

    def take(self, count: int) -> str:
        """The first `count` words; no white space at the end."""
        return self._filler.slice(self._begin, self._filler.offset(self._start + count)).rstrip()

    def breaks(self, length: int) -> npt.NDArray[np.int64]:
        """Places in what `take` gave, `length` characters, where something may be inserted; 0 and `length` too."""
        return self._filler.breaks(self._begin, self._begin + length)

    def break_near(self, length: int, depth: float) -> tuple[int, float]:
        """The break whose share of the tokens is nearest to `depth`, and that share.

        Returns:
            Its offset in what `take` gave, and tokens before it over all, 0 to 1.
        """
        places = self.breaks(length)
        whole = self._before(length)
        wanted = self._filler.offset(self._filler.word_at(self._skipped + round(depth * whole))) - self._begin
        near = places[max(np.searchsorted(places, wanted) - 1, 0) :][:3]
        shares = [self._before(int(place)) / max(whole, 1) for place in near]
        best = min(range(len(near)), key=lambda i: abs(shares[i] - depth))
        return int(near[best]), shares[best]

    def _before(self, offset: int) -> int:
        return self._filler.tokens_before(self._begin + offset) - self._skipped

    def repeats(self, count: int) -> float:
        """How often `count` words go through the text; 1: nothing is repeated."""
        return round(max(count / self._filler.words, 1.0), 4)


def filler_of(path: Path | str, tokenizer: ChatTokenizer, shape: Shape, tokens: int, cache: Path | None) -> Filler:
    """The beginning of a corpus, at least `tokens` tokens of it or all there is; kept in memory and, where named, in a
    folder.

    Raises:
        UserError: `corpus_texts.iterate_texts` has.
    """
    rounded = 1 << (tokens * 3 // 2).bit_length()  # lengths nearby share one; words alone count more than in a text
    return _filler(str(path), tokenizer, shape, rounded, cache)


@functools.lru_cache(maxsize=4)
def _filler(path: str, tokenizer: ChatTokenizer, shape: Shape, tokens: int, cache: Path | None) -> Filler:
    made_from = f"1 {texts_fingerprint(path)} {tokenizer.tokenizer.backend_fingerprint} {shape} {tokens}"
    kept = cache / f"haystack-{hashlib.sha256(made_from.encode()).hexdigest()[:24]}.npz" if cache else None
    if kept is None or not kept.exists():
        text, counts = _count(iterate_texts(path), counter_of(tokenizer), shape, tokens)
        if not text:
            raise UserError(f"{path}: there is nothing but white space in it; give prose.")
        if kept is None:
            return _index(text, counts, shape)
        with atomic_file(kept) as temporary, temporary.open("wb") as stream:
            np.savez(stream, text=np.frombuffer(text.encode("utf-8", "replace"), np.uint8), counts=counts)
    with np.load(kept, allow_pickle=False) as found:
        return _index(found["text"].tobytes().decode(), found["counts"], shape)


def _count(texts: Iterator[str], counter: Counter, shape: Shape, tokens: int) -> tuple[str, npt.NDArray[np.uint16]]:
    """Normalised texts up to the first `tokens`, and the tokens of each word."""
    join = " " if shape == "prose" else "\n"
    parts: list[str] = []
    counts: list[npt.NDArray[np.uint16]] = []
    total = 0
    for text in texts:
        clean = normalised(text, shape)
        if not clean:
            continue
        if parts:
            clean = join + clean if shape == "prose" else clean
            if shape == "lines":
                parts.append(join)  # belongs to the word before it
        words = _WORD.findall(clean)
        for first in range(0, len(words), _BATCH):
            some = words[first : first + _BATCH]
            counts.append(np.minimum(counter.each(some), 65535).astype(np.uint16))
            parts.extend(some)
            total += int(counts[-1].sum())
            if total >= tokens:
                return "".join(parts).rstrip("\n"), np.concatenate(counts)
    return "".join(parts), np.concatenate(counts) if counts else np.zeros(0, np.uint16)


def normalised(text: str, shape: Shape) -> str:
    """A text with its white space as the shape has it, and nothing that is no character."""
    text = text.encode("utf-8", "replace").decode() if not text.isascii() else text
    if shape == "prose":
        return " ".join(text.split())
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def _index(text: str, counts: npt.NDArray[np.uint16], shape: Shape) -> Filler:
    ends = np.fromiter((match.end() for match in _WORD.finditer(text)), dtype=np.int64)
    assert len(ends) == len(counts) and ends[-1] == len(text), "a word is the same alone and in the text"
    breaks = np.fromiter((match.end() for match in _BREAK.finditer(text)), dtype=np.int64)
    places = np.unique(np.concatenate([[0], breaks[breaks < len(text)]]))
    return Filler(text, ends, counts, places, " " if shape == "prose" else "\n")
