"""What packing means: the slow, plain specification that the C++ kernels (csrc/) must equal.

Nothing but the tests calls these functions; the package calls `megatron_ultralong.data.packing._packing`, which has the
same names, arguments and results, and additionally refuses indices outside the arrays. They build whole
streams as Python lists, so their cost is that of the data, token by token.

Vocabulary: a *stream* is the documents `document_ids[0], document_ids[1], ...` one after the other with the
separator between two of them. A *unit* is a document with the separator behind it; the last unit of a stream is
the bare document. A token of the stream is addressed as (position, offset): unit `document_ids[position]`, its
token `offset`. M documents are listed, S is the sequence length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
UNLIMITED = np.iinfo(np.int64).max
"""`longest` where no document is cut."""
_MASK = (1 << 64) - 1
_SHUFFLE_BLOCK = 1 << 16


def build_sample_index(
    lengths: npt.NDArray[np.int32], document_ids: Ints, separator_length: int, sequence_length: int, keep_last: bool
) -> tuple[Ints, int]:
    """Cut the stream into samples of S + 1 tokens, the last of each being the first of the next.

    Args:
        lengths: int32, tokens of each document of the corpus.
        document_ids: int64 [M], the stream's documents.
        separator_length: tokens of the separator, 0 for none.
        sequence_length: S.
        keep_last: whether what is left after the last border is a sample too, although too short.

    Returns:
        int64 [samples + 1, 2]: (position, offset) of token i S of the stream for i = 0 .. samples, so that
        samples = (tokens - 1) // S; and the tokens of the stream. Tokens after the last border are in no sample;
        with `keep_last` they are in one more, samples = ceil((tokens - 1) / S), and if it is too short, the last row
        is the stream's end, (M, 0). Without any token there is no row.
    """
    rows: list[tuple[int, int]] = []
    token = 0
    for position, document in enumerate(document_ids.tolist()):
        unit = int(lengths[document]) + (separator_length if position + 1 < len(document_ids) else 0)
        for offset in range(-token % sequence_length, unit, sequence_length):
            rows.append((position, offset))
        token += unit
    if keep_last and rows and (token - 1) % sequence_length:
        rows.append((len(document_ids), 0))
    return np.array(rows, dtype=np.int64).reshape(-1, 2), token


def best_fit(lengths: npt.NDArray[np.int32], document_ids: Ints, capacity: int, longest: int) -> tuple[Ints, Ints]:
    """Put whole documents into bins, longest first, each into the fullest bin that still has room.

    Args:
        lengths: int32, tokens of each document of the corpus.
        document_ids: int64 [M], the documents to pack.
        capacity: tokens a bin holds.
        longest: tokens at which a document is cut; `UNLIMITED` cuts none, and then those longer than
            `capacity` are left out.

    Returns:
        int64 [kept]: positions in `document_ids`, bin after bin, ascending within a bin; and int64 [bins + 1]:
        where each bin begins in it. Of equally long documents the one listed first is placed first; of equally
        full bins the one opened first is taken.
    """
    sizes = [min(int(lengths[document]), longest) for document in document_ids.tolist()]
    bins: list[list[int]] = []
    room: list[int] = []
    for position in sorted(range(len(sizes)), key=lambda p: -sizes[p]):
        if sizes[position] > capacity:
            continue
        fitting = [(free, index) for index, free in enumerate(room) if free >= sizes[position]]
        if fitting:
            index = min(fitting)[1]
        else:
            index = len(bins)
            bins.append([])
            room.append(capacity)
        bins[index].append(position)
        room[index] -= sizes[position]
    order = [position for members in bins for position in sorted(members)]
    offsets = np.cumsum([0] + [len(members) for members in bins])
    return np.array(order, dtype=np.int64), offsets.astype(np.int64)


def _stream(
    lengths: npt.NDArray[np.int32], document_ids: Ints, separator_length: int, last: int, longest: int
) -> list[tuple[int, int]]:
    """Every token of the stream as (position, offset)."""
    tokens: list[tuple[int, int]] = []
    for position in range(last):
        unit = min(int(lengths[document_ids[position]]), longest)
        unit += separator_length if position + 1 < last else 0
        tokens.extend((position, offset) for offset in range(unit))
    return tokens


def _rest(stream: list[tuple[int, int]], position: int, offset: int) -> list[tuple[int, int]]:
    """The stream from `offset` tokens after the start of unit `position`."""
    before = sum(1 for token in stream if token[0] < position)
    return stream[before + offset :]


def gather(
    tokens: npt.NDArray[Any],
    offsets: Ints,
    lengths: npt.NDArray[np.int32],
    document_ids: Ints,
    separator: Ints,
    fill: int,
    position: int,
    offset: int,
    last: int,
    longest: int,
    count: int,
    spans: Sequence[tuple[int, int]],
) -> tuple[Ints, Ints, Ints]:
    """Read parts of a sample, and find where its documents begin and end.

    Args:
        tokens: uint8, uint16, int32 or int64: every token on disk.
        offsets: int64, byte at which each document begins in `tokens`.
        lengths: int32, tokens of each document.
        document_ids: int64 [M], the stream's documents.
        separator: int64, ids between two documents.
        fill: id of the tokens after the stream's end.
        position: unit in which the sample begins.
        offset: tokens of that unit before the sample.
        last: the stream ends before unit `last`.
        longest: tokens at which a document is cut.
        count: tokens of the sample whose documents are looked for; at least up to the last span they are found anyway.
        spans: half-open ranges of tokens, counted from the sample's first.

    Returns:
        int64 [n]: the spans' tokens, one span after the other; int64 [units + 1]: where each unit begins that has a
        token among the first `count`, the first 0 even if it began before the sample, and where the last one ends
        (at `count` or later, unless the stream ends before); int64 [units]: where the document of each ends (0 if it
        ended before the sample), so that the rest of the unit is separator.

    Raises:
        ValueError: (C++ only) an index outside its array, an array of another dtype, a span that runs backwards.
    """
    rest = _rest(_stream(lengths, document_ids, len(separator), last, longest), position, offset)
    sizes = {at: min(int(lengths[document_ids[at]]), longest) for at, _ in rest}
    values: list[int] = []
    for begin, end in spans:
        for at, within in rest[begin:end]:
            start = int(offsets[document_ids[at]]) // tokens.itemsize
            values.append(int(tokens[start + within] if within < sizes[at] else separator[within - sizes[at]]))
        values += [fill] * (end - max(begin, min(end, len(rest))))
    starts, ends = _unit_bounds(rest, sizes, max([count, *(end for _, end in spans)]))
    return np.array(values, dtype=np.int64), np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)


def _unit_bounds(rest: list[tuple[int, int]], sizes: dict[int, int], count: int) -> tuple[list[int], list[int]]:
    """Of the units with a token among the first `count` of `rest`: starts and the last one's end; documents' ends."""
    starts: list[int] = []
    ends: list[int] = []
    for unit in dict.fromkeys(at for at, _ in rest[:count]):
        whole = [index for index, (at, _) in enumerate(rest) if at == unit]
        starts.append(whole[0])
        ends.append(sum(1 for at, within in rest if at <= unit and (at < unit or within < sizes[unit])))
    starts.append(whole[-1] + 1 if starts else 0)
    return starts, ends


def positions(bounds: Ints, spans: Sequence[tuple[int, int]]) -> Ints:
    """Positions that restart at each bound.

    Args:
        bounds: int64, ascending from 0.
        spans: half-open ranges.

    Returns:
        int64 [n]: for each token of the spans its distance from the last bound at or before it.
    """
    values = [at - max(b for b in bounds.tolist() if b <= at) for begin, end in spans for at in range(begin, end)]
    return np.array(values, dtype=np.int64)


def permutation(count: int, key: int) -> Ints:
    """Shuffle 0 .. count - 1 over SplitMix64, the same in every version of every library.

    Up to 65,536 numbers by Fisher-Yates. More are first thrown at random into as many blocks as 65,536 go into
    `count` (rounded up), then each block is shuffled by itself, with the next of the same random numbers as its key:
    as uniform, kind to caches, and work for many cores.

    Args:
        count: how many.
        key: 64 bits (`shuffle.key` makes them from a seed).

    Returns:
        int64 [count].
    """
    random = _splitmix64(key)
    blocks: list[list[int]] = [[] for _ in range(-(-count // _SHUFFLE_BLOCK))]
    keys = [key]
    if len(blocks) <= 1:
        blocks = [list(range(count))]
    else:
        for value in range(count):
            blocks[_below(len(blocks), random)].append(value)
        keys = [next(random) for _ in blocks]
    for values, own in zip(blocks, map(_splitmix64, keys), strict=True):
        for i in range(len(values) - 1, 0, -1):
            j = _below(i + 1, own)
            values[i], values[j] = values[j], values[i]
    return np.array([value for values in blocks for value in values], dtype=np.int64)


def _splitmix64(state: int) -> Iterator[int]:
    """Random 64-bit numbers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        yield z ^ (z >> 31)


def _below(n: int, random: Iterator[int]) -> int:
    """A random number from 0 to n - 1: the high half of n times the next."""
    return (next(random) * n) >> 64


def blend(weights: Sequence[float], drawn: Sequence[int], count: int) -> tuple[npt.NDArray[np.int32], list[int]]:
    """Choose sources so that each one's share so far is as near its weight as can be.

    Args:
        weights: share of each source; they sum to 1.
        drawn: samples drawn from each source so far.
        count: how many to choose.

    Returns:
        int32 [count]: the source of each next sample, namely the one furthest below weight x samples so far
        (ties: the first); and `drawn` after them.
    """
    after = list(drawn)
    choices: list[int] = []
    for total in range(sum(after) + 1, sum(after) + count + 1):
        errors = [weight * total - have for weight, have in zip(weights, after, strict=True)]
        choices.append(errors.index(max(errors)))
        after[choices[-1]] += 1
    return np.array(choices, dtype=np.int32), after
