"""Every document of a corpus against an index of n-grams: worker processes, a range of documents each, in order.

Cost: a worker decodes, splits and looks up; it holds the words of about 2^20 tokens, whatever the documents' lengths.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus.corpus import Corpus, open_corpus
from megatron_ultralong.data.decontamination.ngram_index import Ints, NgramIndex, load_index
from megatron_ultralong.data.decontamination.plain_words import document_words
from megatron_ultralong.processes import killed_worker_named, start_pool
from megatron_ultralong.progress import Progress

_RANGE = 1 << 22  # tokens of a worker's task
_BATCH = 1 << 18  # words that are looked up together


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """Documents and samples that share n-grams, a pair each, by document and sample. P pairs."""

    documents: Ints
    """int64 [P]: ids in the corpus."""
    samples: Ints
    """int64 [P]."""
    shared: Ints
    """int64 [P]: different n-grams of the sample that the document has."""
    ngrams: Ints
    """int64 [P]: one of them."""


class Matcher:
    """Looks documents up.

    Args:
        index: of the samples.
        spelled: the words of the samples; a word's number is its place, from 1.
        table: the bytes of each token.
    """

    def __init__(self, index: NgramIndex, spelled: Sequence[bytes], table: Sequence[bytes]) -> None:
        self._index, self._table = index, table
        self._vocabulary = {word: number for number, word in enumerate(spelled, start=1)}

    def overlaps(self, documents: Sequence[tuple[int, npt.NDArray[Any]]]) -> Overlaps:
        """The pairs of some documents, given as ids in the corpus and their tokens."""
        hits: list[tuple[Ints, Ints]] = []
        words: list[bytes] = []
        starts, owners = [], []
        for document, tokens in documents:
            tail: list[bytes] = []
            for piece in document_words(tokens, self._table):
                starts.append(len(words))
                owners.append(document)
                words += tail
                words += piece
                tail = (tail + piece)[1 - self._index.n :] if self._index.n > 1 else []
                words.append(b"")  # which no n-gram crosses
                if len(words) >= _BATCH:
                    hits.append(self._look_up(words, starts, owners))
                    words, starts, owners = [], [], []
        hits.append(self._look_up(words, starts, owners))
        return self._pairs(*map(np.concatenate, zip(*hits, strict=True)))

    def _look_up(self, words: list[bytes], starts: list[int], owners: list[int]) -> tuple[Ints, Ints]:
        """Documents and n-grams of all hits among the words, in order."""
        numbers = np.fromiter(map(self._vocabulary.get, words, itertools.repeat(0)), dtype=np.int32, count=len(words))
        places, which = self._index.found(numbers)
        if not len(places):
            return places, which
        owner = np.array(owners, dtype=np.int64)[np.searchsorted(starts, places, side="right") - 1]
        return owner, which

    def _pairs(self, owners: Ints, which: Ints) -> Overlaps:
        rows: list[tuple[Ints, ...]] = [(np.zeros(0, dtype=np.int64),) * 4]
        if not len(owners):
            return Overlaps(*rows[0])
        order = np.lexsort((which, owners))
        owners, which = owners[order], which[order]
        new = np.ones(len(owners), dtype=np.bool_)
        new[1:] = (owners[1:] != owners[:-1]) | (which[1:] != which[:-1])
        owners, which = owners[new], which[new]
        documents, begins = np.unique(owners, return_index=True)
        for document, own in zip(documents, np.split(which, begins[1:]), strict=True):
            samples, shared, ngrams = self._index.covered(own)
            rows.append((np.full(len(samples), document, dtype=np.int64), samples, shared, ngrams))
        return Overlaps(*map(np.concatenate, zip(*rows, strict=True)))


def corpus_overlaps(
    corpus: Corpus, index: NgramIndex, spelled: Sequence[bytes], table: Sequence[bytes], workers: int
) -> Iterator[Overlaps]:
    """The pairs of all documents, in order, a range of documents at a time.

    Raises:
        UserError: a worker was killed.
    """
    ranges = list(_ranges(corpus.tokens.lengths))
    with Progress("looking for n-grams", int(corpus.tokens.lengths.sum(dtype=np.int64)), "tokens") as progress:
        if workers == 1 or len(ranges) == 1:
            matcher = Matcher(index, spelled, table)
            results: Iterator[Overlaps] = (_range_overlaps(matcher, corpus, *each) for each in ranges)
            yield from _counted(results, ranges, corpus, progress)
            return
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder))
            pool = start_pool(
                min(workers, len(ranges)),
                _begin,
                *(corpus.prefix, folder, index.n, index.seed, list(spelled), list(table)),
            )
            with pool, killed_worker_named("A worker was killed, probably for want of memory; give fewer --workers."):
                yield from _counted(_in_order(pool, ranges, 2 * workers), ranges, corpus, progress)


def _ranges(lengths: npt.NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about `_RANGE` tokens."""
    begin, held = 0, 0
    for first in range(0, len(lengths), 1 << 16):
        ends = np.cumsum(lengths[first : first + (1 << 16)], dtype=np.int64)
        done = 0
        while (at := int(np.searchsorted(ends, done - held + _RANGE))) < len(ends):
            yield begin, first + at + 1
            begin, done, held = first + at + 1, int(ends[at]), 0
        held += int(ends[-1]) - done
    if begin < len(lengths):
        yield begin, len(lengths)


def _range_overlaps(matcher: Matcher, corpus: Corpus, begin: int, end: int) -> Overlaps:
    return matcher.overlaps([(document, corpus.tokens[document]) for document in range(begin, end)])


def _counted(
    results: Iterator[Overlaps], ranges: Sequence[tuple[int, int]], corpus: Corpus, progress: Progress
) -> Iterator[Overlaps]:
    for (begin, end), each in zip(ranges, results, strict=True):
        yield each
        progress.advance(int(corpus.tokens.lengths[begin:end].sum(dtype=np.int64)))


def _in_order(pool: Any, ranges: Sequence[tuple[int, int]], ahead: int) -> Iterator[Overlaps]:
    """Results in the order of the ranges, of which so many are asked for ahead."""
    waiting: list[Future[Overlaps]] = []
    for each in ranges:
        waiting.append(pool.submit(_work, each))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


_worker: list[Any] = []


def _begin(prefix: Path, folder: str, n: int, seed: int, words: list[bytes], table: list[bytes]) -> None:
    index = load_index(Path(folder), n, seed)
    corpus = open_corpus(prefix, believed=True)
    _worker.append(functools.partial(_range_overlaps, Matcher(index, words, table), corpus))


def _work(each: tuple[int, int]) -> Overlaps:
    found: Overlaps = _worker[0](*each)
    return found
