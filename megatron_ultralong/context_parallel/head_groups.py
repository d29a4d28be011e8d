"""A rank's heads by groups and its positions by tiles, for the memory-lean layer: sizes alone, without torch.

A group is some key-value heads with all their queries, or, with more groups than key-value heads, a part of one
key-value head's queries, which then share its keys and values.
"""

from __future__ import annotations

import dataclasses

TILE = 4096
"""Positions of a tensor-parallel group in a tile of the lean layer, unless parallel.mlp_chunk gives a rank's."""


@dataclasses.dataclass(frozen=True)
class HeadGroups:
    """One rank's heads by groups, in the model's order.

    Attributes:
        count: groups.
        queries: N / count, query heads of a group.
        keys: key-value heads of a group.
        sharing: neighbouring groups that share their keys and values; 1 unless a key-value head's queries are split.
    """

    count: int
    queries: int
    keys: int
    sharing: int

    @classmethod
    def of(cls, heads: int, kv_heads: int, count: int) -> HeadGroups:
        """`count` groups of a rank's heads, which `problem` does not object to."""
        return cls(count, heads // count, max(kv_heads // count, 1), max(count // kv_heads, 1))


def problem(heads: int, kv_heads: int, count: int) -> str | None:
    """Why a rank's heads cannot be cut into `count` groups, or None: they can."""
    if heads % count or (kv_heads % count and count % kv_heads):
        fitting = [n for n in range(1, heads + 1) if not heads % n and (not kv_heads % n or not n % kv_heads)]
        return (
            f"which does not cut a rank's {heads} attention heads and {kv_heads} key-value heads into equal groups; "
            f"give one of {', '.join(map(str, fitting))}."
        )
    return None


def tile_rows(mlp_chunk: int, ranks: int) -> int:
    """Positions of one rank in a tile.

    Args:
        mlp_chunk: parallel.mlp_chunk.
        ranks: whose positions are gathered: tp with sequence parallelism, else 1.
    """
    return mlp_chunk or max(TILE // ranks, 1)
