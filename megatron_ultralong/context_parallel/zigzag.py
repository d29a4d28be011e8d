"""The zig-zag layout: which positions of a sequence a context-parallel rank holds, and what it attends to.

A sequence of S tokens is cut into 2 cp equal chunks and rank r holds chunks r and 2 cp - 1 - r, in this
order, so that every rank has the same causal work. This is megatron-core's and Transformer Engine's order.
Pure arithmetic: rank and size are arguments, no process group.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from megatron_ultralong.errors import UserError


def chunk_length(sequence_length: int, cp_size: int) -> int:
    """Tokens in each of the 2 cp chunks (the whole sequence for cp 1).

    Raises:
        UserError: the sequence does not divide into 2 cp chunks.
    """
    if cp_size == 1:
        return sequence_length
    if sequence_length % (2 * cp_size):
        raise UserError(
            f"data.sequence_length {sequence_length} is not divisible by 2 x parallel.context = {2 * cp_size}."
        )
    return sequence_length // (2 * cp_size)


def chunks(rank: int, cp_size: int) -> tuple[int, ...]:
    """The chunks that `rank` holds, in the order in which it holds them."""
    return (0,) if cp_size == 1 else (rank, 2 * cp_size - 1 - rank)


def spans(sequence_length: int, rank: int, cp_size: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of positions that `rank` holds, in order."""
    length = chunk_length(sequence_length, cp_size)
    return tuple((chunk * length, (chunk + 1) * length) for chunk in chunks(rank, cp_size))


@dataclasses.dataclass(frozen=True)
class Block:
    """One rectangle of attention between held positions: rows q_start:q_stop against keys k_start:k_stop.

    Offsets count from the first position that the rank of the queries (or of the keys) holds.
    A causal block is square, and its mask is the lower triangle.
    """

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int
    causal: bool


def blocks(
    sequence_length: int, q_rank: int, k_rank: int, cp_size: int, cu_seqlens: Sequence[int] | None
) -> list[Block]:
    """The rectangles that make causal attention of `q_rank`'s queries over `k_rank`'s keys.

    Between two different chunks at most one document crosses, so that pair is one plain rectangle: the tail of
    the key chunk against the head of the query chunk. Only a chunk against itself is causal, a square for each
    document in it.

    Args:
        sequence_length: S, tokens of the whole packed sequence.
        cu_seqlens: [documents + 1] bounds over the whole sequence, 0 first and S last; None: one document.
    """
    length = chunk_length(sequence_length, cp_size)
    bounds = list(cu_seqlens) if cu_seqlens is not None else [0, sequence_length]
    found = []
    for q_place, q_chunk in enumerate(chunks(q_rank, cp_size)):
        for k_place, k_chunk in enumerate(chunks(k_rank, cp_size)):
            if k_chunk > q_chunk:
                continue
            q_offset, k_offset = (q_place - q_chunk) * length, (k_place - k_chunk) * length
            for q_start, q_stop, k_start, k_stop in _between(q_chunk, k_chunk, length, bounds):
                found.append(
                    Block(
                        q_start + q_offset,
                        q_stop + q_offset,
                        k_start + k_offset,
                        k_stop + k_offset,
                        causal=q_chunk == k_chunk,
                    )
                )
    return found


def _between(q_chunk: int, k_chunk: int, length: int, bounds: list[int]) -> list[tuple[int, int, int, int]]:
    """Rectangles between two chunks in absolute positions."""
    q_start, k_start = q_chunk * length, k_chunk * length
    q_stop, k_stop = q_start + length, k_start + length
    found = []
    for start, stop in itertools.pairwise(bounds):
        queries = max(start, q_start), min(stop, q_stop)
        keys = max(start, k_start), min(stop, k_stop)
        if queries[0] < queries[1] and keys[0] < keys[1]:
            found.append((*queries, *keys))
    return found
