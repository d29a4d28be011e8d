"""The memory formula against what PyTorch's allocator is asked for during a call, kernels' own scratch included.

The profiler records every allocation and release of tensor memory on the CPU; the peak of their running sum is the
most that existed at a time. gloo's own buffers are sockets', not tensors'.
"""

import functools

import pytest
import torch

from megatron_ultralong.context_parallel.ring_memory import ring_memory
from megatron_ultralong.engine import cpu_products

L, N, K, H = 512, 16, 4, 64  # a kernel thread's scratch is 0.15 MB here, and 0.6 MB from 768 rows on


def peak_bytes(call):
    """Most bytes allocated at a time during `call`, and what it leaves allocated, from nothing before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    assert peak > 0
    return peak, kept


def measure(attend, rank, size, dtype, cu_seqlens):
    """Bytes beyond inputs and results at the peaks of forward and backward."""
    cpu_products.has_bf16 = lambda: (
        True
    )  # fp32 copies, where it has none, are no formula's; the rank ends with this file
    q, k, v = (torch.randn(1, L, heads, H, dtype=dtype).requires_grad_() for heads in (N, K, K))
    grad = torch.randn(1, L, N, H, dtype=dtype)
    call = functools.partial(attend, q, k, v, cu_seqlens=cu_seqlens)
    call().backward(grad)  # what is made once (masks, plans, connections) is there
    q.grad = k.grad = v.grad = None
    forward, out = peak_bytes(call)
    backward, _ = peak_bytes(lambda: out.backward(grad))
    results = [sum(x.nbytes for x in tensors) for tensors in ((out,), (q.grad, k.grad, v.grad))]
    return forward - results[0], backward - results[1]


@pytest.mark.gloo
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory_is_the_formula_on_any_number_of_ranks(ranks, dtype):
    peaks = []
    for size in (2, 4, 8):
        measured = ranks.run(size, measure, dtype, None)
        predicted = ring_memory(
            batch=1,
            local_length=L,
            heads=N,
            kv_heads=K,
            head_dim=H,
            bytes_per_element=dtype.itemsize,
            cp_size=size,
        )
        forward, backward = (max(peak) for peak in zip(*measured, strict=True))
        assert forward == pytest.approx(predicted.forward, rel=0.1), (size, measured, predicted)
        assert backward == pytest.approx(predicted.backward, rel=0.1), (size, measured, predicted)
        peaks.append((forward, backward))
    for of_one_pass in zip(*peaks, strict=True):
        assert max(of_one_pass) <= 1.02 * min(of_one_pass)


def test_the_formula_of_a_layer_of_llama_8b():
    """1M tokens in bf16 on 8 ranks: two KV buffers of 0.5 GiB, 2 GiB of fp32 output, a block's 1 GiB, thrice 16 MiB."""
    found = ring_memory(
        batch=1, local_length=131072, heads=32, kv_heads=8, head_dim=128, bytes_per_element=2, cp_size=8
    )
    assert found.forward == (2 * 512 + 2048 + 1024 + 3 * 16) * 2**20
    assert found.saved == 16 * 2**20


def test_documents_that_send_nothing_need_no_buffers(ranks):
    whole, apart = (
        ranks.run(2, measure, torch.float32, bounds) for bounds in (None, tuple(range(0, 2 * L + 1, L // 2)))
    )
    buffers = 2 * 2 * L * K * H * 4
    assert all(b[0] <= a[0] - buffers / 2 for a, b in zip(whole, apart, strict=True))
