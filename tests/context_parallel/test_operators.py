"""What a ring call launches on a GPU beside attention's own kernels, counted on fake tensors of any length."""

import collections
import itertools

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_ultralong.context_parallel import rectangles
from megatron_ultralong.context_parallel.ring import ring_attention
from megatron_ultralong.rehearsal import operators

MOST = 16  # operators a block


@pytest.fixture(params=[2, 4, 16])
def ring(request):
    """One rank, in the middle, of a ring without the others."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param // 2, world_size=request.param)
    yield dist.group.WORLD
    dist.destroy_process_group()


def call(group, rows, bounds, capability):
    """Operators of one ring call, forward and backward, and how many blocks it computes."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    plan = rectangles.plan(rows * size, rank, size, bounds, True)
    with operators.counting(capability) as counted:
        q, k, v = (torch.empty(1, rows, heads, 128, dtype=torch.bfloat16).requires_grad_() for heads in (32, 8, 8))
        out = ring_attention(q, k, v, group=group, cu_seqlens=bounds)
        forward = counted.counts
        out.backward(torch.empty_like(out))
    assert q.grad.shape == q.shape and not counted.synchronisations
    return forward, counted.counts - forward, 1 + sum(len(step.blocks) for step in plan.steps[1:])


def documents(length, total):
    return tuple([*range(0, total, length), total])


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["flash", "cuDNN"])
def test_a_block_takes_a_handful_of_operators(ring, capability):
    forward, backward, blocks = call(ring, 262144, None, capability)
    kernel = "_flash_attention" if capability < (9, 0) else "_scaled_dot_product_cudnn_attention"
    assert blocks == dist.get_world_size(ring)
    for counts in (forward, backward):
        assert sum(n for name, n in counts.items() if name.startswith(kernel)) == blocks
        assert operators.own(counts) <= MOST * blocks, counts


@pytest.mark.parametrize("bounds", [None, "odd", "short"])
def test_operators_do_not_grow_with_rows_or_documents(ring, bounds):
    found = collections.defaultdict(set)
    for rows in (4096, 262144):
        total = rows * dist.get_world_size(ring)
        given = {None: None, "odd": (0, 5, total // 3, total), "short": documents(rows // 64, total)}[bounds]
        forward, backward, blocks = call(ring, rows, given, (9, 0))
        for way, counts in (("forward", forward), ("backward", backward)):
            assert operators.own(counts) <= MOST * blocks
            found[way].add((blocks, operators.own(counts), tuple(sorted(counts.items()))))
    assert {way: len(counts) for way, counts in found.items()} == {"forward": 1, "backward": 1}


def test_many_documents_cost_one_more_set_of_bounds_and_no_operator_each(ring):
    rows = 8192
    total = rows * dist.get_world_size(ring)
    few, many = (call(ring, rows, documents(length, total), (9, 0)) for length in (rows // 2, 16))
    assert few[2] == many[2] == 1
    for a, b in itertools.islice(zip(few, many, strict=True), 2):
        assert a == b
