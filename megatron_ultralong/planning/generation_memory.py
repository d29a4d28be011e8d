"""Memory of generation on one rank: weights, the KV cache, and what exists while a chunk is read; pure arithmetic.

Nothing but the cache grows with the sequence. Left out are norms' and rotary tables, biases, NCCL's buffers, what an
allocator loses, and the ids (8 bytes a token, in host memory).
"""

from __future__ import annotations

import dataclasses

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.planning.flops import ModelShape

HEAD_ROWS = 512
"""Positions whose logits exist at once."""


@dataclasses.dataclass(frozen=True)
class GenerationMemory:
    """Bytes on one rank.

    Attributes:
        weights: the model's parameters.
        cache: keys and values of the whole room.
        chunk: at most while a chunk is read, beyond these two.
    """

    weights: int
    cache: int
    chunk: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.chunk


def kv_cache_bytes(shape: ModelShape, parallel: ParallelConfig, tokens: int, element: int) -> int:
    """Keys and values of `tokens` tokens on one rank, of `element` bytes each: 2 K H a layer and token, spread.

    Every ring / R-th token lies here, with K / (tensor x ulysses) of its heads, at least one.
    """
    rows = -(-tokens // (parallel.context // parallel.ulysses))
    return shape.layers * 2 * rows * _heads(shape, parallel)[1] * shape.head_dim * element


def generation_memory(
    shape: ModelShape, parallel: ParallelConfig, *, tokens: int, chunk: int, element: int, tied: bool = False
) -> GenerationMemory:
    """What evaluation with the megatron backend holds.

    Args:
        shape: the model.
        parallel: `tensor`, `context` and `ulysses` count.
        tokens: of the longest prompt with its answer.
        chunk: tokens that a rank reads at once.
        element: bytes of a number, 2 for bf16.
        tied: the head is the embedding.
    """
    tp = parallel.tensor
    table = -(-shape.vocabulary // tp) * shape.hidden
    layer = shape.layer_weights // tp + 2 * shape.hidden
    weights = (shape.layers * layer + table * (1 if tied else 2) + shape.hidden) * element
    return GenerationMemory(
        weights, kv_cache_bytes(shape, parallel, tokens, element), _chunk(shape, parallel, tokens, chunk, element)
    )


def _chunk(shape: ModelShape, parallel: ParallelConfig, tokens: int, chunk: int, element: int) -> int:
    """The highest point of a layer or of the head, for as many tokens as a rank reads at once."""
    tp, u, ring = parallel.tensor, parallel.ulysses, parallel.context // parallel.ulysses
    read = min(chunk, -(-tokens // parallel.context))
    residual, head = read * shape.hidden * element, read * shape.head_dim * element
    n, k = shape.heads // tp, max(shape.kv_heads // tp, 1)
    queries = n * head
    layer = 4 * residual + (n + 2 * k) * head  # embedded, the layer's input, its copy, normed; queries, keys, values
    exchanged = (n + 2 * _heads(shape, parallel)[1] * u) * head + (queries if ring > 1 else 0) if u > 1 else 0
    attending = _attention(read * n, shape.head_dim, element, ring)
    attention = layer + (n + k) * head + exchanged + max(attending, 3 * queries if u > 1 else 0)
    rotating = layer + 4 * queries
    mlp = 5 * residual + 5 * read * shape.ffn // tp * element
    logits = min(HEAD_ROWS, read) * -(-shape.vocabulary // tp) * (4 if element == 4 else element + 4)
    reduced = residual if tp > 1 else 0  # megatron-core's buffer for row-parallel products
    return reduced + max(attention, rotating, mlp, 2 * residual + logits)


def _heads(shape: ModelShape, parallel: ParallelConfig) -> tuple[int, int]:
    """Query and key heads that a rank attends with."""
    ranks = parallel.tensor * parallel.ulysses
    return shape.heads // ranks, max(shape.kv_heads // ranks, 1)


def _attention(rows: int, head_dim: int, element: int, ring: int) -> int:
    """What cached attention holds beside its inputs, for so many rows of queries.

    The output in fp32, one block's in the model's dtype, and three log-sum-exps; of several ranks also two visitors,
    the output found for one, and two results with their log-sum-exp on the way.
    """
    wide = max(element, 4)
    own = rows * (head_dim * (wide + element) + 3 * wide)
    if ring == 1:
        return own
    visitors = min(2, ring - 1) * rows * head_dim * element
    return own + visitors + rows * (head_dim * wide + wide) + 2 * rows * (head_dim + 1) * wide
