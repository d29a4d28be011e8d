"""The zig-zag layout: which positions of a sequence a context-parallel rank holds, and how tensors are cut by it.

A sequence of S tokens is cut into 2 cp equal chunks and rank r holds chunks r and 2 cp - 1 - r, in this
order, so that every rank has the same causal work. This is megatron-core's and Transformer Engine's order.
Pure arithmetic: rank and size are arguments, no process group.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_ultralong.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def chunk_length(sequence_length: int, cp_size: int) -> int:
    """Tokens in each of the 2 cp chunks (the whole sequence for cp 1).

    Raises:
        UserError: the sequence does not divide into 2 cp chunks.
    """
    if cp_size == 1:
        return sequence_length
    if sequence_length % (2 * cp_size):
        raise UserError(
            f"data.sequence_length {sequence_length} is not divisible by 2 x parallel.context = {2 * cp_size}; the "
            f"next that is: {padded_length(sequence_length, cp_size)}."
        )
    return sequence_length // (2 * cp_size)


def padded_length(sequence_length: int, cp_size: int) -> int:
    """The least length from `sequence_length` on that divides into 2 cp chunks."""
    parts = 1 if cp_size == 1 else 2 * cp_size
    return -(-sequence_length // parts) * parts


def chunks(rank: int, cp_size: int) -> tuple[int, ...]:
    """The chunks that `rank` holds, in the order in which it holds them."""
    if not 0 <= rank < cp_size:
        raise ValueError(f"rank {rank} is not one of {cp_size} context-parallel ranks")
    return (0,) if cp_size == 1 else (rank, 2 * cp_size - 1 - rank)


def spans(sequence_length: int, rank: int, cp_size: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of positions that `rank` holds, in order."""
    length = chunk_length(sequence_length, cp_size)
    return tuple((chunk * length, (chunk + 1) * length) for chunk in chunks(rank, cp_size))


def shard(whole: Tensor, rank: int, cp_size: int, *, dim: int = 1, pad: float | None = None) -> Tensor:
    """What `rank` holds of a tensor over the whole sequence.

    Args:
        whole: S positions along `dim`: 1 for [B, S, ...] (batches, [B, S, N, H]), 0 for [S, B, ...].
        pad: None: a length that 2 cp does not divide is an error. A number: what is added at the end up to
            `padded_length`. Under causal attention no real token sees it; give tokens and labels any id, and
            the loss mask 0.

    Returns:
        A copy, [B, L, ...] or [L, B, ...] with L = S / cp.
    """
    import torch  # here, so that the plan of a run needs no torch

    dim %= whole.dim()
    length = whole.shape[dim]
    if pad is not None and (missing := padded_length(length, cp_size) - length):
        shape = (*whole.shape[:dim], missing, *whole.shape[dim + 1 :])
        whole = torch.cat((whole, whole.new_full(shape, pad)), dim)
    held = spans(whole.shape[dim], rank, cp_size)
    return torch.cat([whole.narrow(dim, start, stop - start) for start, stop in held], dim)


def unshard(shares: Sequence[Tensor], *, dim: int = 1, length: int | None = None) -> Tensor:
    """The whole sequence, from what ranks 0, 1, ..., cp - 1 hold of it: the inverse of `shard`.

    Args:
        shares: one tensor a rank, in the ranks' order, of equal shapes.
        length: S before padding; None: nothing was padded.
    """
    import torch

    cp_size, sizes = len(shares), {share.shape[dim] for share in shares}
    if len(sizes) != 1 or (cp_size > 1 and min(sizes) % 2):
        raise ValueError(f"shares of {sorted(sizes)} positions: each holds two chunks of one length")
    if cp_size == 1:
        whole = shares[0]
    else:
        early, late = zip(*(share.chunk(2, dim) for share in shares), strict=True)
        whole = torch.cat((*early, *reversed(late)), dim)
    return whole if length is None else whole.narrow(dim, 0, length)


def document_bounds(cu_seqlens: Sequence[int], sequence_length: int) -> tuple[int, ...]:
    """Bounds as the plan needs them: ints from 0 to S, rising; empty documents are left out.

    Raises:
        UserError: they fall, or do not span the sequence.
    """
    bounds = [int(bound) for bound in cu_seqlens]
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != sequence_length:
        shown = f"{bounds[0]} .. {bounds[-1]}" if bounds else "none"
        raise UserError(f"cu_seqlens must go from 0 to the sequence's {sequence_length} tokens, and are {shown}.")
    for before, after in itertools.pairwise(bounds):
        if after < before:
            raise UserError(f"cu_seqlens must not fall, and {before} is followed by {after}.")
    return (0, *(after for before, after in itertools.pairwise(bounds) if after > before))
