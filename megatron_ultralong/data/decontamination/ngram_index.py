"""The n-grams of evaluation samples, and which of them a run of words holds: exact, in linear time.

Words are numbers from 1 on, 0 is a word that no sample has. An n-gram has a 64-bit hash of its words' random numbers;
a table of 16 bits an n-gram says of most others that they are none, the rest are searched for among the sorted hashes,
and then the words themselves are compared, so that nothing but an equal n-gram counts. N-grams that occur in more
samples than is asked for (instructions, templates, a shared haystack) are left out.

Cost: building sorts all n-grams, some 80 bytes of memory a word of the samples; a run of words is looked at in about 50
operations of numpy a word. Workers map the arrays from files, and share their memory so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_ultralong.errors import UserError

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
_FACTOR = np.uint64(0x9E3779B97F4A7C15 | 1)
_ARRAYS = ("numbers", "hashes", "first", "holder_starts", "holders", "table", "totals")


@dataclasses.dataclass(frozen=True)
class NgramIndex:
    """See the module. Shapes: W words of all samples together, G n-grams, S samples."""

    n: int
    """Words of an n-gram."""
    seed: int
    """Of the words' random numbers."""
    numbers: npt.NDArray[np.int32]
    """int32 [W]: the samples' words one after the other."""
    hashes: Hashes
    """uint64 [G], ascending."""
    first: Ints
    """int64 [G]: where each n-gram begins in `numbers`."""
    holder_starts: Ints
    """int64 [G + 1]: where the samples of each begin in `holders`."""
    holders: npt.NDArray[np.int32]
    """int32: samples."""
    table: npt.NDArray[np.uint8]
    """Bits, a power of two of them, set at the lowest bits of each hash."""
    totals: Ints
    """int64 [S]: different n-grams of each sample that are looked for."""

    def found(self, words: npt.NDArray[np.int32]) -> tuple[Ints, Ints]:
        """Where n-grams of samples are.

        Args:
            words: int32 [n].

        Returns:
            int64 [hits], ascending: where each begins in `words`; int64 [hits]: which of the G it is.
        """
        places = _whole(words, self.n)
        hashes = _hash(words, places, self.n, self.seed)
        bits = hashes & np.uint64(8 * len(self.table) - 1)
        byte = self.table[(bits >> np.uint64(3)).astype(np.int64)]
        likely = (byte >> (bits & np.uint64(7)).astype(np.uint8)) & 1 == 1
        places, hashes = places[likely], hashes[likely]
        which = np.searchsorted(self.hashes, hashes)
        same = which < len(self.hashes)
        same[same] = self.hashes[which[same]] == hashes[same]
        places, which = places[same], which[same].astype(np.int64)
        equal = _equal(words, places, self.numbers, self.first[which], self.n)
        return places[equal], which[equal]

    def covered(self, which: Ints) -> tuple[Ints, Ints, Ints]:
        """The samples that have these n-grams (int64, different ones).

        Returns:
            int64 [samples]: they, ascending; how many of the n-grams each has; and one n-gram that it has.
        """
        counts = self.holder_starts[which + 1] - self.holder_starts[which]
        within = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
        samples = self.holders[np.repeat(self.holder_starts[which], counts) + within]
        found, one, many = np.unique(samples, return_index=True, return_counts=True)
        return found.astype(np.int64), many.astype(np.int64), np.repeat(which, counts)[one]

    def save(self, folder: Path) -> None:
        """Write the arrays, which `load_index` maps."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)


def load_index(folder: Path, n: int, seed: int) -> NgramIndex:
    """What `NgramIndex.save` wrote, mapped."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
    return NgramIndex(n=n, seed=seed, **arrays)


def build_index(samples: Sequence[npt.NDArray[np.int32]], n: int, most_samples: int) -> NgramIndex:
    """Index the n-grams of samples.

    Args:
        samples: int32 [words] each, numbers from 1 on.
        n: words of an n-gram.
        most_samples: n-grams in more samples than this are left out.

    Raises:
        UserError: there is no n-gram.
    """
    lengths = np.array([len(sample) + 1 for sample in samples], dtype=np.int64)
    numbers = np.zeros(int(lengths.sum()), dtype=np.int32)  # a 0 behind each, which no n-gram holds
    for start, sample in zip(np.cumsum(lengths) - lengths, samples, strict=True):
        numbers[start : start + len(sample)] = sample
    places = _whole(numbers, n)
    if not len(places):
        raise UserError(f"--against: no sample has {n} words or more; lower --ngram.")
    owners = np.searchsorted(np.cumsum(lengths), places, side="right").astype(np.int32)
    seed = 0
    while True:
        hashes = _hash(numbers, places, n, seed)
        order = np.lexsort((places, hashes))
        sorted_ = hashes[order]
        new = np.concatenate([[True], sorted_[1:] != sorted_[:-1]])
        group = np.cumsum(new) - 1
        first = places[order][new]
        if len(_equal(numbers, places[order], numbers, first[group], n)) == len(places):
            break
        seed += 1  # two n-grams with one hash: others then
    pairs = np.unique(group * len(samples) + owners[order])
    group, holders = pairs // len(samples), (pairs % len(samples)).astype(np.int32)
    counts = np.bincount(group, minlength=len(first))
    kept = counts <= most_samples
    holders, counts = holders[kept[group]], counts[kept]
    unique = sorted_[new][kept]
    return NgramIndex(
        n=n,
        seed=seed,
        numbers=numbers,
        hashes=unique,
        first=first[kept],
        holder_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        holders=holders,
        table=_table(unique),
        totals=np.bincount(holders, minlength=len(samples)).astype(np.int64),
    )


def _whole(words: npt.NDArray[np.int32], n: int) -> Ints:
    """Where n words in a row are none of them 0."""
    unknown = np.concatenate([[0], np.cumsum(words == 0)])
    return np.flatnonzero(unknown[n:] == unknown[:-n]) if len(words) >= n else np.zeros(0, dtype=np.int64)


def _hash(words: npt.NDArray[np.int32], places: Ints, n: int, seed: int) -> Hashes:
    """uint64 [places]: a polynomial of the words' random numbers."""
    random = _random(words.astype(np.uint64) + np.uint64(seed << 32))
    hashes = np.zeros(len(places), dtype=np.uint64)
    for i in range(n):
        hashes = hashes * _FACTOR + random[places + i]
    return hashes


def _random(values: Hashes) -> Hashes:
    """splitmix64 of each number."""
    values = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _equal(words: npt.NDArray[np.int32], places: Ints, others: npt.NDArray[np.int32], there: Ints, n: int) -> Ints:
    """Which pairs of places have the same n words."""
    same = np.ones(len(places), dtype=np.bool_)
    for i in range(n):
        same &= words[places + i] == others[there + i]
    return np.flatnonzero(same)


def _table(hashes: Hashes) -> npt.NDArray[np.uint8]:
    bits = 1 << max(10, int(16 * max(len(hashes), 1) - 1).bit_length())
    table = np.zeros(bits, dtype=np.bool_)
    table[(hashes & np.uint64(bits - 1)).astype(np.int64)] = True
    return np.packbits(table, bitorder="little")
