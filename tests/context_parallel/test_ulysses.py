"""Heads for sequence, alone and around a ring, against full attention: outputs, dq, dk, dv on real processes."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ultralong.context_parallel import kernels, ulysses, zigzag
from megatron_ultralong.context_parallel.check import ulysses_problem
from megatron_ultralong.errors import UserError

S = 48
DOCUMENTS = {
    "one": None,
    "odd": (0, 5, 6, 29, 48),
    "on chunk borders": (0, 12, 24, 48),
    "single tokens": tuple(range(49)),
}
HEADS = [(4, 4), (4, 2), (4, 1), (8, 1)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


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


def inputs(heads, dtype):
    torch.manual_seed(0)
    shapes = [(2, S, heads[0], 16), (2, S, heads[1], 16), (2, S, heads[1], 16), (2, S, heads[0], 16)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def with_gradients(attend, q, k, v, grad):
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    out = attend(q, k, v)
    out.backward(grad)
    return [x.detach().double() for x in (out, q.grad, k.grad, v.grad)]


def join(rank, size, store_path, degree):
    """This process's inner and outer group of a 2-D grid, the inner group of neighbours."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store_path, size), rank=rank, world_size=size)
    inner, _ = dist.new_subgroups_by_enumeration([list(range(o, o + degree)) for o in range(0, size, degree)])
    outer, _ = dist.new_subgroups_by_enumeration([list(range(i, size, degree)) for i in range(degree)])
    return inner, outer


def compare(rank, size, store_path, degree, results):
    inner, outer = join(rank, size, store_path, degree)
    held = torch.cat([torch.arange(*span) for span in zigzag.spans(S, rank, size)])
    for (name, bounds), heads, dtype in itertools.product(DOCUMENTS.items(), HEADS, TOLERANCE):
        q, k, v, grad = inputs(heads, dtype)
        exact = with_gradients(
            lambda *qkv, b=bounds: kernels.reference(*qkv, 0.3, b), *(x.double() for x in (q, k, v, grad))
        )
        ours = with_gradients(
            lambda *qkv, b=bounds: ulysses.ulysses_attention(
                *qkv, heads_group=inner, ring_group=outer, cu_seqlens=b, softmax_scale=0.3
            ),
            *(x[:, held] for x in (q, k, v, grad)),
        )
        for part, a, b in zip(("out", "dq", "dk", "dv"), ours, exact, strict=True):
            error = ((a - b[:, held]).norm() / b.norm().clamp(min=1)).item()  # single tokens: dq = dk = 0
            results.append((name, heads, str(dtype), part, error, TOLERANCE[dtype]))
    q, k, v, _ = inputs((3, 3), torch.float32)
    with pytest.raises(UserError, match="which does not divide a rank's 3 attention heads; give a divisor of 3"):
        ulysses.ulysses_attention(*(x[:, held] for x in (q, k, v)), heads_group=inner, ring_group=outer)
    dist.destroy_process_group()


@pytest.mark.gloo
@pytest.mark.parametrize(("size", "degree"), [(2, 2), (4, 4), (4, 2)], ids=["ulysses 2", "ulysses 4", "2 x 2"])
def test_equals_full_attention(size, degree, tmp_path):
    with mp.Manager() as manager:
        results = manager.list()
        mp.spawn(compare, (size, str(tmp_path / "store"), degree, results), nprocs=size)
        rows = list(results)
    assert len(rows) == size * len(DOCUMENTS) * len(HEADS) * len(TOLERANCE) * 4
    assert not [row for row in rows if not row[-2] <= row[-1]]
