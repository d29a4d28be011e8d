"""Ring attention against full attention in fp64: outputs and dq, dk, dv, over ranks, heads and documents."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ultralong.context_parallel import kernels, zigzag
from megatron_ultralong.context_parallel.ring import ring_attention

S = 48
DOCUMENTS = {
    "one": None,
    "odd": (0, 5, 6, 29, 48),
    "on chunk borders": (0, 8, 16, 24, 48),
    "single tokens": tuple(range(49)),
}
HEADS = {"MHA": (4, 4), "GQA": (4, 2), "MQA": (4, 1)}
# Of fp64's and fp32's rounding, over sums of some hundred terms; bf16 is compared with one process's own error.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}


def inputs(heads, dtype):
    torch.manual_seed(0)
    shapes = [(2, S, heads[0], 16), (2, S, heads[1], 16), (2, S, heads[1], 16), (2, S, heads[0], 16)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def with_gradients(attend, q, k, v, grad):
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    out = attend(q, k, v)
    out.backward(grad)
    return [x.detach().double() for x in (out, q.grad, k.grad, v.grad)]


def compare(rank, cp_size, store_path, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store_path, cp_size), rank=rank, world_size=cp_size)
    held = torch.cat([torch.arange(*span) for span in zigzag.spans(S, rank, cp_size)])
    group = dist.group.WORLD if cp_size > 1 else None
    for (name, bounds), heads, dtype in itertools.product(DOCUMENTS.items(), HEADS.values(), TOLERANCE):
        q, k, v, grad = inputs(heads, dtype)
        wide = [x.double() for x in (q, k, v, grad)]
        exact = with_gradients(lambda *qkv, b=bounds: kernels.reference(*qkv, 0.3, b), *wide)
        ours = with_gradients(
            lambda *qkv, b=bounds: ring_attention(*qkv, group=group, cu_seqlens=b, softmax_scale=0.3),
            *(x[:, held] for x in (q, k, v, grad)),
        )
        for part, a, b in zip(("out", "dq", "dk", "dv"), ours, exact, strict=True):
            error = ((a - b[:, held]).norm() / b.norm().clamp(min=1)).item()  # single tokens: dq = dk = 0
            results.append((name, heads, str(dtype), part, error, TOLERANCE[dtype]))
    dist.destroy_process_group()


@pytest.mark.parametrize("cp_size", [1, 2, 3])
def test_equals_full_attention(cp_size, tmp_path):
    with mp.Manager() as manager:
        results = manager.list()
        mp.spawn(compare, (cp_size, str(tmp_path / "store"), results), nprocs=cp_size)
        rows = list(results)
    assert len(rows) == cp_size * len(DOCUMENTS) * len(HEADS) * len(TOLERANCE) * 4
    assert not [row for row in rows if not row[-2] <= row[-1]]


def test_bf16_is_as_near_as_plain_bf16_attention():
    q, k, v, grad = inputs((4, 2), torch.bfloat16)
    exact = with_gradients(lambda *x: kernels.reference(*x, 0.3), *(x.double() for x in (q, k, v, grad)))
    plain = with_gradients(lambda *x: kernels.reference(*x, 0.3), q, k, v, grad)
    ours = with_gradients(lambda *x: ring_attention(*x, group=None, softmax_scale=0.3), q, k, v, grad)
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert (a - c).abs().max() <= 2 * (b - c).abs().max()
