"""Shares of a checkpoint: every value is one rank's, wherever the cuts fall."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_ultralong.checkpoint.shares import Copy, Piece, boxes_of, copies_of, own_boxes, pieces, row_ranges
from megatron_ultralong.engine import mcore


def sharded(
    data: torch.Tensor, *offsets: tuple[int, int, int], layer: tuple[int, int] | None = None
) -> mcore.ShardedTensor:
    """A rank's tensor, by megatron-core's own constructor; `layer`: its index of so many, on an axis before."""
    if layer is None:
        return mcore.ShardedTensor.from_rank_offsets("w", data, *offsets, replica_id=(0, 0, 1))
    moved = [(axis + 1, rank, parts) for axis, rank, parts in offsets]
    return mcore.ShardedTensor.from_rank_offsets(
        "w", data, (0, *layer), *moved, replica_id=(0, 0, 1), prepend_axis_num=1
    )


def put(box: mcore.ShardedTensor, whole: torch.Tensor, count: torch.Tensor) -> None:
    """A box's values where they belong."""
    place = tuple(slice(at, at + size) for at, size in zip(box.global_offset, box.local_shape, strict=True))
    whole[place] = box.data
    count[place] += 1


@pytest.mark.parametrize("tensors", [[(10, 4), (3, 100), (1, 7), (0, 4), (33, 2)], [(1, 1000)], [(7, 3)]])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 50])
def test_rows_are_cut_evenly_and_once(tensors: list[tuple[int, int]], ranks: int) -> None:
    found = [row_ranges(tensors, rank, ranks) for rank in range(ranks)]
    for place, (rows, _) in enumerate(tensors):
        assert [row for ranges in found for row in range(*ranges[place])] == list(range(rows))
    shares = [sum((last - first) * size for (first, last), (_, size) in zip(r, tensors, strict=True)) for r in found]
    even, widest = sum(shares) / ranks, max(size for _, size in tensors)
    assert all(abs(share - even) < widest + 1 for share in shares)


@pytest.mark.parametrize("layer", [None, (2, 5)])
@pytest.mark.parametrize("shape", [(6, 5), (13,), (1, 9), (9, 1)])
def test_every_stretch_of_a_flat_tensor_is_its_boxes(shape: tuple[int, ...], layer: tuple[int, int] | None) -> None:
    local = torch.arange(math.prod(shape), dtype=torch.float32).view(shape) + 1
    its = sharded(local, (0, 1, 2), layer=layer)
    (piece,) = pieces(its)
    for start in range(local.numel()):
        for stop in range(start + 1, local.numel() + 1):
            found = list(piece.boxes("w", start, local.view(-1)[start:stop]))
            assert len(found) <= 3
            whole, count = torch.zeros(its.global_shape), torch.zeros(its.global_shape)
            for box in found:
                assert box.data.untyped_storage().data_ptr() == local.untyped_storage().data_ptr()
                put(box, whole, count)
            own = whole[its.global_slice()].view(-1)
            assert own[start:stop].tolist() == local.view(-1)[start:stop].tolist()
            assert count.sum() == stop - start and count.max() == 1


def test_a_gated_mlp_is_two_pieces() -> None:
    """megatron-core's factory: gate and up projection lie apart in the global tensor."""
    from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

    local = torch.arange(8 * 3, dtype=torch.float32).view(8, 3) + 1
    factory = apply_swiglu_sharded_factory(sharded(local, (0, 1, 2)), ())
    parts = pieces(factory)
    assert [(part.start, part.shape, tuple(part.sharded.global_offset)) for part in parts] == [
        (0, (4, 3), (4, 0)),
        (12, (4, 3), (12, 0)),
    ]
    whole, count = torch.zeros(16, 3), torch.zeros(16, 3)
    for start, stop in ((0, 10), (10, 11), (11, 24)):  # the second ends within a row, the third spans both
        for box in boxes_of(parts, "w", start, local.view(-1)[start:stop]):
            put(box, whole, count)
    assert torch.equal(whole[4:8], local[:4]) and torch.equal(whole[12:], local[4:])
    assert count.sum() == 24 and count.max() == 1


def test_the_shares_of_all_ranks_are_the_whole() -> None:
    first, second = torch.randn(7, 4), torch.randn(11)
    copies: list[Copy] = []
    for key, tensor in (("a", first), ("b", second)):
        copies += copies_of(pieces(sharded(tensor)), key, tensor.view(-1))
    found = {"a": (torch.zeros(7, 4), torch.zeros(7, 4)), "b": (torch.zeros(11), torch.zeros(11))}
    for rank in range(3):
        for box in own_boxes(copies, rank, 3):
            put(box, *found[box.key])
    for key, tensor in (("a", first), ("b", second)):
        assert torch.equal(found[key][0], tensor) and bool((found[key][1] == 1).all())


def test_only_the_first_of_several_groups_with_a_copy_writes_it() -> None:
    for replica, is_main in (((0, 0, 3), True), ((0, 1, 0), False), ((1, 0, 0), False)):
        its = mcore.ShardedTensor.from_rank_offsets("w", torch.zeros(2), replica_id=replica)
        assert Piece(its, 0).is_main == is_main
