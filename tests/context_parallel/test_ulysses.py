"""Heads for sequence, alone and around a ring, against full attention in fp64: outputs, dq, dk, dv."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ultralong.context_parallel import ulysses, zigzag
from megatron_ultralong.context_parallel.requirements import ulysses_problem
from megatron_ultralong.context_parallel.ring_exchange import LostPeerError
from megatron_ultralong.errors import UserError
from tests.context_parallel.ring_ranks import GRIDS, flash_in_one_process, with_gradients
from tests.context_parallel.test_ring import HEAD_DIMS, PARTS, TOLERANCE, errors, exact, inputs

pytestmark = pytest.mark.gloo


def test_shares_of_neighbours_lie_in_order():
    """Ranks 2 and 3 of 4 hold chunks 2, 5 and 3, 4 of 8; together chunks 1 and 2 of 4, rank 1's of 2."""
    held = torch.stack([torch.cat([torch.arange(*span) for span in zigzag.spans(16, rank, 4)]) for rank in (2, 3)])
    assert held.tolist() == [[4, 5, 10, 11], [6, 7, 8, 9]]
    together = ulysses._in_sequence(held[:, None, :, None, None])
    assert together.flatten().tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert ulysses._by_share(together, 2).flatten(1).tolist() == held.tolist()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "degree", "said"),
    [
        (8, 4, 2, None),
        (8, 2, 4, None),
        (8, 1, 8, None),
        (6, 3, 3, None),
        (6, 6, 4, "which does not divide a rank's 6 attention heads; give a divisor of 6."),
        (6, 3, 2, "neither a divisor nor a multiple of a rank's 3 key-value heads; give a divisor of 6 that is one."),
    ],
)
def test_heads_that_cannot_be_spread_are_named(heads, kv_heads, degree, said):
    assert ulysses_problem(heads, kv_heads, degree) == said


def assert_exact(ranks, grid, tensors, cu_seqlens=None, causal=True, scale=0.3):
    size, degree = grid
    arguments = {"cu_seqlens": cu_seqlens, "causal": causal}
    found = ranks.attend(size, tensors, ulysses=degree, softmax_scale=scale, **arguments)
    worst = errors(found, exact(tensors, scale=scale, **arguments))
    assert all(x.dtype == tensors[0].dtype for x in found)
    assert max(worst.values()) <= TOLERANCE[tensors[0].dtype], worst


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid[0] != 3], ids="{0[0]} ranks, {0[1]} by heads".format)
def test_equals_full_attention(ranks, grid, dtype):
    """With up to eight times as many ranks as key-value heads."""
    for group, head_dim, batch in ((1, 32, 1), (2, 64, 2), (4, 128, 1), (8, 64, 1)):
        tensors = inputs(240, heads=8, kv_heads=8 // group, head_dim=head_dim, batch=batch, dtype=dtype)
        if grid[0] == 8:
            tensors = [x[:, :224] for x in tensors]
        assert_exact(ranks, grid, tensors, scale=head_dim**-0.5)
        bounds = (0, 1, 30, 60, 61, 119, 223, tensors[0].shape[1])
        assert_exact(ranks, grid, tensors, scale=head_dim**-0.5, cu_seqlens=bounds)


@st.composite
def packed(draw):
    """A grid, a sequence of odd chunks, heads that fit, and documents anywhere, on borders, of one token, or one."""
    size, degree = draw(st.sampled_from(GRIDS))
    chunk = draw(st.integers(1, 7))
    length = 2 * size * chunk
    anywhere = st.integers(1, length - 1)
    on_borders = st.integers(1, 2 * size - 1).map(lambda k: k * chunk)
    cuts = draw(st.sets(anywhere | on_borders, max_size=draw(st.sampled_from([0, 2, 5, length]))))
    fitting = [k for k in range(1, 2 * degree + 1) if ulysses_problem(2 * degree, k, degree) is None]
    kv_heads = draw(st.sampled_from([k for k in fitting if 2 * degree % k == 0]))
    return (size, degree), length, (0, *sorted(cuts), length), kv_heads, draw(st.booleans()), draw(st.integers(1, 2))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=packed(), head_dim=st.sampled_from(HEAD_DIMS), seed=st.integers(0, 99))
def test_any_documents_and_heads(ranks, case, head_dim, seed):
    grid, length, bounds, kv_heads, causal, batch = case
    tensors = inputs(length, heads=2 * grid[1], kv_heads=kv_heads, head_dim=head_dim, batch=batch, seed=seed)
    assert_exact(ranks, grid, tensors, cu_seqlens=bounds, causal=causal)


def test_the_same_numbers_as_the_ring_from_the_same_shares(ranks):
    """What the data's layout being the same means: only the split of the ranks differs."""
    tensors = inputs(96, heads=8, kv_heads=2)
    ring, *others = (ranks.attend(4, tensors, ulysses=degree, cu_seqlens=(0, 31, 96)) for degree in (1, 2, 4))
    for other in others:
        assert max(errors(other, ring).values()) < 1e-14


def test_bf16_errors_are_those_of_one_process(ranks):
    """Also where eight ranks' gradients of one key-value head are added: at most twice (measured: 0.6 to 1.1)."""
    tensors = inputs(960, heads=8, kv_heads=1, head_dim=64, dtype=torch.bfloat16)
    wanted = exact(tensors, scale=64**-0.5)
    one = errors(with_gradients(flash_in_one_process, *tensors), wanted)
    for size, degree in GRIDS:
        if size == 3:
            continue
        several = errors(ranks.attend(size, tensors, ulysses=degree), wanted)
        assert all(several[part] <= 2 * one[part] for part in PARTS), (size, degree, several, one)


def attend_without_the_other(rank, store):
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    dist.barrier()
    if rank == 1:
        os._exit(0)
    q, k, v, _ = inputs(32)
    with pytest.raises(LostPeerError, match="Process 0 could not exchange heads with the others of processes 0, 1: a"):
        ulysses.ulysses_attention(q, k, v, heads_group=dist.group.WORLD, ring_group=None)
    os._exit(0)  # a group that lost a peer cannot be left: gloo's threads may end the interpreter with SIGABRT


def test_a_lost_peer_is_named(tmp_path):
    mp.spawn(attend_without_the_other, (str(tmp_path / "store"),), nprocs=2)


def test_heads_that_do_not_divide_are_refused_on_every_rank(ranks):
    with pytest.raises(
        UserError, match=r"parallel.ulysses is 2, which does not divide a rank's 3 attention heads; give"
    ):
        ranks.attend(2, inputs(32, heads=3, kv_heads=3), ulysses=2)
