"""Which rows of which tensors each rank of a checkpoint writes and reads: every byte is one rank's.

What the ranks of a data- and context-parallel group hold in copies (weights; without the distributed optimizer also
Adam's state) is laid end to end and cut evenly, to a row; what a rank alone holds it writes as it is. Nothing is
gathered to be written. To be read, each rank reads its rows into their place and the group exchanges them by
broadcasts, in place too. A stretch of a flattened matrix is at most three boxes of the global tensor (the end of a row,
whole rows, the beginning of one), so that DCP gives any layout what it needs of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.engine import device as engine_device
from megatron_ultralong.engine import mcore


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a rank's tensor that lies in one box of a global tensor, such as a gated MLP's gate.

    Attributes:
        sharded: megatron-core's ShardedTensor, for its geometry.
        start: where the part begins in the flattened local tensor.
    """

    sharded: Any
    start: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part, here."""
        return tuple(self.sharded.local_shape)

    @property
    def is_main(self) -> bool:
        """Whether this rank's data- and context-parallel group writes it: other groups may hold the same."""
        return not any(self.sharded.replica_id[:-1])

    def boxes(self, key: str, first: int, values: Tensor) -> Iterator[Any]:
        """ShardedTensors, with views of `values`, for a stretch of the part.

        Args:
            key: of the global tensor.
            first: where the stretch begins in the flattened part.
            values: the stretch, flat.
        """
        width, last, at = math.prod(self.shape[1:]), first + len(values), first
        while at < last:
            row, column = divmod(at, width)
            if column or last - at < width:
                stop = min(last, (row + 1) * width)
                shape: tuple[int, ...] = (1, stop - at)
            else:
                stop = last - last % width
                shape = ((stop - at) // width, width)
            yield self._box(key, values[at - first : stop - first], (row, column), shape)
            at = stop

    def _box(self, key: str, values: Tensor, offset: tuple[int, int], shape: tuple[int, ...]) -> Any:
        sharded, dimensions = self.sharded, len(self.shape)
        assert 1 <= dimensions <= 2, f"{key} has {dimensions} dimensions"
        before = sharded.prepend_axis_num
        within = [a + b for a, b in zip(sharded.global_offset[before:], offset[:dimensions], strict=True)]
        shape = (*[1] * before, *shape[:dimensions])
        return mcore.ShardedTensor(
            key=key,
            data=values.view(shape),
            dtype=values.dtype,
            local_shape=shape,
            global_shape=sharded.global_shape,
            global_offset=(*sharded.global_offset[:before], *within),
            axis_fragmentations=None,
            allow_shape_mismatch=sharded.allow_shape_mismatch,
        )


def pieces(sharded: Any) -> list[Piece]:
    """The parts of what megatron-core's sharded_state_dict says of one tensor, in their order."""
    with torch.no_grad():
        whole = dataclasses.replace(sharded, data=sharded.data.detach())
        parts = whole.build() if hasattr(whole, "build") else [whole]
    found, start = [], 0
    for part in parts:
        found.append(Piece(part.without_data(), start))
        start += math.prod(part.local_shape)
    assert start == whole.data.numel(), f"{sharded.key}: its parts are not all of it"
    return found


def boxes_of(parts: Sequence[Piece], key: str, start: int, values: Tensor) -> Iterator[Any]:
    """Boxes for a stretch of a flattened local tensor, over the parts that it touches."""
    for piece in parts:
        first = max(start, piece.start)
        last = min(start + len(values), piece.start + math.prod(piece.shape))
        if first < last:
            yield from piece.boxes(key, first - piece.start, values[first - start : last - start])


def row_ranges(tensors: Sequence[tuple[int, int]], rank: int, ranks: int) -> list[tuple[int, int]]:
    """A rank's rows of each tensor where all are laid end to end and cut evenly.

    Args:
        tensors: rows, and bytes a row.
        rank, ranks: of the group.
    """
    total, at, found = sum(rows * size for rows, size in tensors), 0, []
    for rows, size in tensors:
        cuts = (total * rank // ranks, total * (rank + 1) // ranks)
        first, last = (min(rows, max(0, -(-(cut - at) // size))) for cut in cuts)
        found.append((first, last))
        at += rows * size
    return found


@dataclasses.dataclass(frozen=True)
class Copy:
    """A part of a tensor that every rank of the group holds.

    Attributes:
        key: of the global tensor.
        piece: where it lies there.
        values: flat.
    """

    key: str
    piece: Piece
    values: Tensor

    @property
    def row(self) -> int:
        """Values a row."""
        return math.prod(self.piece.shape[1:])

    @property
    def rows_and_bytes(self) -> tuple[int, int]:
        """As `row_ranges` takes them."""
        return len(self.values) // self.row, self.row * self.values.element_size()


def copies_of(parts: Sequence[Piece], key: str, values: Tensor) -> list[Copy]:
    """A whole flattened tensor, part by part; `key` is that of the global tensor."""
    ends = [piece.start + math.prod(piece.shape) for piece in parts]
    return [Copy(key, piece, values[piece.start : end]) for piece, end in zip(parts, ends, strict=True)]


def own_boxes(copies: Sequence[Copy], rank: int, ranks: int) -> list[Any]:
    """This rank's share of what the group holds in copies."""
    found: list[Any] = []
    for copy, (first, last) in zip(copies, _ranges(copies, rank, ranks), strict=True):
        first, last = first * copy.row, last * copy.row
        found += copy.piece.boxes(copy.key, first, copy.values[first:last])
    return found


def exchange(copies: Sequence[Copy], group: dist.ProcessGroup) -> None:
    """Give every rank of the group the shares that the others have read, in place; what lies on the host by device."""
    members = dist.get_process_group_ranks(group)
    for place, member in enumerate(members if len(members) > 1 else ()):
        for copy, (first, last) in zip(copies, _ranges(copies, place, len(members)), strict=True):
            if first < last:
                share = copy.values[first * copy.row : last * copy.row]
                there = share.to(engine_device.current())  # itself, where it lies there
                dist.broadcast(there, src=member, group=group)
                if there is not share:
                    share.copy_(there)


def _ranges(copies: Sequence[Copy], rank: int, ranks: int) -> list[tuple[int, int]]:
    return row_ranges([copy.rows_and_bytes for copy in copies], rank, ranks)
