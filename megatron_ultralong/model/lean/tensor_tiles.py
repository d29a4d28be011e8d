"""Tiles of the sequence, and how one goes to and from the tensor-parallel group.

Under sequence parallelism a rank holds L / tp consecutive positions, and a tile is the same stretch of every rank's: it
is gathered, computed with this rank's share of the weights, and summed back to the ranks. Tensors over all L positions
are written a tile at a time, so the gathered [L, B, D] never exists, and megatron-core's buffer of that size is not
made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a rank's positions are cut.

    House legend, and T: positions of this rank in a tile, S: those of all ranks in it, T x `ranks`.

    Attributes:
        rows: positions of this rank in a tile; the last may have fewer.
        group: the tensor-parallel group.
        split: positions are split over the group (sequence parallelism); else every rank has all of them.
    """

    rows: int
    group: dist.ProcessGroup
    split: bool

    @property
    def ranks(self) -> int:
        """Whose positions make a tile."""
        return self.group.size() if self.split else 1

    def parts(self, x_LBD: Tensor) -> Iterator[slice]:
        """This rank's positions in each tile."""
        return (slice(start, start + self.rows) for start in range(0, len(x_LBD), self.rows))

    def gathered(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] of each rank -> [S, B, D], by rank."""
        if self.ranks == 1:
            return x_TBD
        whole_SBD = x_TBD.new_empty(self.ranks * len(x_TBD), *x_TBD.shape[1:])
        dist.all_gather_into_tensor(whole_SBD, x_TBD.contiguous(), group=self.group)
        return whole_SBD

    def summed(self, partial_SBD: Tensor) -> Tensor:
        """Partial sums of each rank -> their sum, at this rank's positions [T, B, D]."""
        if self.ranks > 1:
            own_TBD = partial_SBD.new_empty(len(partial_SBD) // self.ranks, *partial_SBD.shape[1:])
            dist.reduce_scatter_tensor(own_TBD, partial_SBD, group=self.group)
            return own_TBD
        if self.group.size() > 1:
            dist.all_reduce(partial_SBD, group=self.group)
        return partial_SBD

    def across(self, x_L: Tensor, part: slice) -> Tensor:
        """A tile of a tensor over all L positions: a view [ranks, T, ...]."""
        return x_L.unflatten(0, (self.ranks, -1))[:, part]

    def shared(self, x_S: Tensor) -> Tensor:
        """[S, ...] -> [ranks, T, ...], the form of `across`."""
        return x_S.unflatten(0, (self.ranks, -1))
