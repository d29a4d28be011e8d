"""How much of the vocabulary's logits exists at once: sizes alone, without torch, for the loss and for plans of it."""

from __future__ import annotations

import dataclasses

_CHUNK_ELEMENTS = 2**28
"""Logits that exist at once on a rank unless a chunk is given: 1 GiB in fp32."""


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """How the loss is computed.

    Attributes:
        chunk: positions a rank sends through the head at once; 0: as many as make 2^28 logits.
        vocabulary: entries over all ranks; logits beyond are of rows that padding added, and count as minus infinity;
            0: none was added.
        z_loss: weight of the squared logarithm of the softmax's denominator (PaLM, arXiv 2204.02311, section 5).
    """

    chunk: int = 0
    z_loss: float = 0.0
    vocabulary: int = 0


DEFAULT = LossOptions()


def chunk_rows(options: LossOptions, vocabulary: int, ranks: int = 1) -> int:
    """Positions of this rank's hidden states in a chunk.

    Args:
        options: may fix the chunk.
        vocabulary: logits a position on this rank, V / tp.
        ranks: whose positions are gathered: tp with sequence parallelism, else 1.
    """
    return max(1, (options.chunk or _CHUNK_ELEMENTS // vocabulary) // ranks)
