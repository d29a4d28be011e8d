"""Keys and values of every layer of one sequence, spread over context-parallel ranks by stripes.

All of it is allocated at once for a known number of tokens: 2 K H values a layer and token, of which a rank of R holds
one token in R (and with ulysses u, K / u heads of it). Nothing grows while tokens are read or written, and going back
to any earlier length is one number, so texts that begin alike are read once.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from megatron_ultralong.context_parallel import stripes
from megatron_ultralong.context_parallel.stripes import Stretch


class KVCache:
    """One rank's share of a sequence's keys and values.

    Args:
        layers: of the model.
        tokens: room, over all ranks.
        kv_heads: that this rank attends with.
        head_dim: H.
        dtype: of the model.
        device: where it lies.
        stripe: this rank's number in the ring.
        ring: ranks of the ring, R.

    Attributes:
        length: tokens that are in it, over all ranks.
    """

    def __init__(
        self,
        *,
        layers: int,
        tokens: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        stripe: int = 0,
        ring: int = 1,
    ) -> None:
        rows = -(-tokens // ring)  # the same on every rank
        self.values = torch.empty(layers, 2, 1, rows, kv_heads, head_dim, dtype=dtype, device=device)
        self.tokens, self.stripe, self.ring, self.length = rows * ring, stripe, ring, 0

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self.length = min(self.length, length)

    def stretch(self, tokens: int) -> Stretch:
        """The next tokens, which there must be room for."""
        assert self.length + tokens <= self.tokens, f"{self.length} + {tokens} tokens in a cache of {self.tokens}"
        return Stretch(self.length, tokens, self.ring)

    def write(self, layer: int, stretch: Stretch, k_BLKH: Tensor, v_BLKH: Tensor) -> None:
        """Put this rank's rows of a stretch into their place; rows beyond them are padding."""
        begin, rows = stretch.before(self.stripe), stretch.rows(self.stripe)
        for kind, x_BLKH in enumerate((k_BLKH, v_BLKH)):
            self.values[layer, kind, :, begin : begin + rows] = x_BLKH[:, :rows]

    def read(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys and values of this rank's rows, views [1, rows, K, H]."""
        k, v = self.values[layer, :, :, first:last]
        return k, v

    def advance(self, stretch: Stretch) -> None:
        """Count a stretch as held, once every layer has written it."""
        self.length = stretch.stop

    def rows(self, length: int) -> int:
        """This rank's rows of the first `length` tokens."""
        return stripes.count(self.stripe, self.ring, length)


@dataclasses.dataclass(frozen=True)
class CachedStretch:
    """What a forward pass is of: the next tokens of a cached sequence.

    One token alone is computed by every rank alike; of several each rank computes its share (`Stretch.share`).
    """

    cache: KVCache
    stretch: Stretch

    @property
    def alone(self) -> bool:
        """Whether every rank computes all of it."""
        return self.stretch.tokens == 1
