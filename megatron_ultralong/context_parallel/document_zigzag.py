"""Transformer Engine's cut of packed documents: every document by itself into 2 cp chunks.

Our own attention cuts the whole packed sequence (zigzag.py) and takes any lengths. Transformer Engine's ring holds
chunks r and 2 cp - 1 - r of each document instead, so each document must be divisible by 2 cp. Pure arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.errors import UserError


def spans(cu_seqlens: Sequence[int], rank: int, cp_size: int, sample: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of positions that `rank` holds, in order: two a document (one for cp 1).

    Args:
        cu_seqlens: [documents + 1] bounds over the whole sequence, 0 first and S last.
        rank: this context-parallel rank.
        cp_size: of how many.
        sample: the sample's number in the run, for the message.

    Raises:
        UserError: a document that is not divisible by 2 cp.
    """
    held = []
    for place, (start, stop) in enumerate(itertools.pairwise(cu_seqlens)):
        if cp_size > 1 and (stop - start) % (2 * cp_size):
            raise UserError(
                f"data.document_mask: document {place} of sample {sample} has {stop - start} tokens, not divisible by "
                f"2 x parallel.context = {2 * cp_size} as Transformer Engine needs; set parallel.attention to "
                '"torch", which takes any lengths, or pad the documents.'
            )
        held += [(start + first, start + last) for first, last in zigzag.spans(stop - start, rank, cp_size)]
    return tuple(held)
