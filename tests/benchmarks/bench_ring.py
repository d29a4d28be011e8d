"""How fast ring attention is on two ranks of this machine, as ratios within one run.

    python tests/benchmarks/bench_ring.py                    # 16,384 tokens, 8 heads of 64, fp32: a minute and a half
    python tests/benchmarks/bench_ring.py --tokens 32768

Each rank is pinned to one core. What it is compared with:
- one process with both cores on the whole sequence;
- all keys and values gathered first, then each chunk of queries against all keys before it (the usual fallback);
- its own parts: what it sends without what it computes, and the reverse;
- itself within documents: seconds for a unit of work, work being the sum of squared lengths. Few documents do not
  divide evenly over ranks, so how much more than its half the busier rank has is said beside it.
Then the kernel on short blocks, against PyTorch's flash kernel called plainly, a document at a time.
"""

import argparse
import contextlib
import ctypes
import functools
import itertools
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ultralong.context_parallel import kernels, kernels_cpu, online_softmax, rectangles, zigzag
from megatron_ultralong.context_parallel.ring import ring_attention
from megatron_ultralong.context_parallel.ring_exchange import Exchange, Neighbours
from megatron_ultralong.context_parallel.ring_memory import ring_memory


class GatherFirst(torch.autograd.Function):
    """The peer: causal attention after an all-gather of all keys and values, dK and dV reduced in one scatter."""

    @staticmethod
    def forward(ctx, q, k, v, group):
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        shares = torch.empty(size, 2, *k.shape, dtype=k.dtype)
        dist.all_gather(list(shares.unbind(0)), torch.stack((k, v)), group=group)
        whole_k, whole_v = (zigzag.unshard(list(shares[:, part].unbind(0))) for part in (0, 1))
        outs = [
            before_and_at(chunk, whole_k, whole_v, start, stop)
            for chunk, (start, stop) in zip(q.chunk(2, 1), zigzag.spans(whole_k.shape[1], rank, size), strict=True)
        ]
        out, lse = (torch.cat(parts, 1) for parts in zip(*outs, strict=True))
        ctx.save_for_backward(q, whole_k, whole_v, out, lse)
        ctx.group = group
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensors
        rank, size = dist.get_rank(ctx.group), dist.get_world_size(ctx.group)
        dq, dk, dv = (torch.zeros(x.shape) for x in (q, k, v))
        scale, half = q.shape[-1] ** -0.5, q.shape[1] // 2
        for place, (start, stop) in enumerate(zigzag.spans(k.shape[1], rank, size)):
            rows = slice(place * half, (place + 1) * half)
            by_row = [x[:, rows] for x in (grad, q)], [x[:, rows] for x in (out, lse)]
            for keys, causal in ((slice(start, stop), True), (slice(0, start), False)):
                if keys.stop > keys.start:
                    found = kernels.backward(*by_row[0], k[:, keys], v[:, keys], *by_row[1], causal, scale)
                    dq[:, rows] += found[0]
                    dk[:, keys] += found[1]
                    dv[:, keys] += found[2]
        shares = torch.stack([torch.stack([zigzag.shard(x, r, size) for x in (dk, dv)]) for r in range(size)])
        mine = torch.empty_like(shares[0])
        dist.reduce_scatter_tensor(mine, shares.flatten(0, 1), group=ctx.group)
        return dq, mine[0], mine[1], None


def gather_first(q, k, v, *, group):
    return GatherFirst.apply(q, k, v, group)


def before_and_at(q, k, v, start, stop):
    """A chunk of queries against its own keys and all before it."""
    scale = q.shape[-1] ** -0.5
    out, lse = kernels.forward(q, k[:, start:stop], v[:, start:stop], True, scale)
    if start:
        online_softmax.fold(out, lse, *kernels.forward(q, k[:, :start], v[:, :start], False, scale))
    return out, lse


def seconds(attend, tensors, group, repeats):
    """The least of some runs of forward and backward, on the slowest rank."""
    q, k, v, grad = (x.clone().requires_grad_() for x in tensors)
    best = float("inf")
    for _ in range(repeats):
        if group is not None:
            dist.barrier(group)
        begun = time.perf_counter()
        attend(q, k, v).backward(grad)
        took = torch.tensor(time.perf_counter() - begun)
        if group is not None:
            dist.all_reduce(took, dist.ReduceOp.MAX, group=group)
        best = min(best, took.item())
        q.grad = k.grad = v.grad = None
    return best


def random_bounds(tokens, mean, seed=0):
    """Documents of exponentially distributed lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.empty(4 * tokens // mean + 8).exponential_(1 / mean, generator=generator).long().clamp(min=1)
    return (0, *(bound for bound in lengths.cumsum(0).tolist() if bound < tokens), tokens)


def work(bounds):
    return sum((stop - start) ** 2 for start, stop in itertools.pairwise(bounds))


def exchange_only(plan, group, heads):
    """A function that sends what one forward and one backward pass send, and computes nothing."""
    neighbours, length = Neighbours(group), plan.documents[-1]
    buffers = [torch.zeros(length, 2, 1, heads, 64) for _ in range(2)]

    def send():
        for _ in range(2):
            for step in plan.steps:
                neighbours.start(buffers[0], step.keys_out, buffers[1], step.keys_in, what="", tag=1).finish()
        for step in plan.steps:
            neighbours.start(buffers[0], step.gradients_out, buffers[1], step.gradients_in, what="", tag=2).finish()

    return send


@contextlib.contextmanager
def nothing_sent():
    """Within it the ring computes all it does, with whatever lies in its buffers."""
    start = Neighbours.start
    Neighbours.start = lambda ring, outgoing, sent, incoming, received, **_: Exchange(ring, "", [], [])
    try:
        yield
    finally:
        Neighbours.start = start


def busier(bounds, tokens):
    """The larger of two ranks' work, as a part of the mean."""
    each = []
    for rank in range(2):
        plan = rectangles.plan(tokens, rank, 2, bounds, True)
        across = [block for step in plan.steps[1:] for block in step.blocks]
        each.append(work(plan.documents) + 2 * sum((b.q_stop - b.q_start) * (b.k_stop - b.k_start) for b in across))
    return 2 * max(each) / sum(each)


def keep_freed_memory():
    """Have malloc keep what is freed, as it does in a step of training; else calls pay for mapping their results."""
    trim_threshold, mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    assert libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(mmap_max, 0)


def on_two_ranks(rank, store, asked, results):
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    group = dist.group.WORLD
    for name, tokens, heads, bounds, repeats in asked:
        tensors = [zigzag.shard(x, rank, 2) for x in inputs(tokens, heads)]
        attend = functools.partial(ring_attention, group=group, cu_seqlens=bounds)
        if name == "gather":
            attend = functools.partial(gather_first, group=group)
        with nothing_sent() if name == "computed" else contextlib.nullcontext():
            took = seconds(attend, tensors, group, repeats)
        if rank == 0:
            results[name] = took
        if name == "ring":
            send = exchange_only(rectangles.plan(tokens, rank, 2, bounds, True), group, heads)
            results["sent"] = max(results.get("sent", 0), best_of(send, repeats=5))
    dist.destroy_process_group()


def inputs(tokens, heads):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, tokens, heads, 64, generator=generator) for _ in range(4)]


def two_ranks(asked):
    with mp.Manager() as manager, tempfile.TemporaryDirectory() as folder:
        results = manager.dict()
        mp.spawn(on_two_ranks, (str(Path(folder) / "store"), asked, results), nprocs=2)
        return dict(results)


def report(name, took, against, peer):
    print(f"{name:44s} {1000 * took:9.1f} ms   {took / peer:5.2f} x {against} ({1000 * peer:.1f} ms)", flush=True)


def long_sequences(tokens, heads):
    torch.set_num_threads(2)
    one = seconds(lambda q, k, v: ring_attention(q, k, v, group=None), inputs(tokens, heads), None, 2)
    cases = [(tokens, mean) for mean in (tokens // 8, tokens // 64, 128)] + [(4 * tokens, mean) for mean in (256, 128)]
    documents = {case: random_bounds(*case) for case in cases}
    asked = [(name, tokens, heads, None, 2) for name in ("ring", "computed", "gather")]
    asked += [(case, case[0], heads, bounds, 5) for case, bounds in documents.items()]
    found = two_ranks(asked)
    print(f"Forward and backward, {tokens:,} tokens, {heads} heads of 64, fp32, two ranks of one core each:")
    report("ring", found["ring"], "one process, both cores", one)
    report("ring", found["ring"], "gathering keys and values first", found["gather"])
    report("ring", found["ring"], "its computing alone", found["computed"])
    report("what it sends, alone", found["sent"], "the ring", found["ring"])
    held = ring_memory(
        batch=1, local_length=tokens // 2, heads=heads, kv_heads=heads, head_dim=64, bytes_per_element=4, cp_size=2
    )
    whole = 2 * tokens * heads * 64 * 4 / 2**20
    print(f"  held in backward: {held.backward / 2**20:.0f} MiB, for any number of ranks at this local length;")
    print(f"  gathering: {3 * whole:.0f} MiB (all keys and values, their gradients, and these again in shares), and")
    print("  that many times more as there are more ranks")
    for (length, mean), bounds in documents.items():
        share = found[length, mean] / found["ring"]
        true = work(bounds) / work((0, tokens))
        print(
            f"  {length:,} tokens in {len(bounds) - 1:3d} documents of about {mean:5d}: {share:.4f} of the time for "
            f"{true:.4f} of the work, {share / true:.2f} x; the busier rank has {busier(bounds, length):.2f} x its half"
        )


def plainly(tensors, bounds, scale):
    """PyTorch's kernel, one call a document."""
    q, k, v, grad = tensors
    out, dq, dk, dv = (torch.empty_like(x) for x in (q, q, k, v))
    for start, stop in itertools.pairwise(bounds):
        rows = slice(start, stop)
        block_out, lse = kernels_cpu._plain(q[:, rows], k[:, rows], v[:, rows], True, scale)
        out[:, rows] = block_out
        dq[:, rows], dk[:, rows], dv[:, rows] = kernels_cpu._plain_backward(
            grad[:, rows], q[:, rows], k[:, rows], v[:, rows], block_out, lse, True, scale
        )


def in_bands(tensors, bounds, scale):
    q, k, v, grad = tensors
    bounds = bounds if len(bounds) > 2 else None
    out, lse = kernels.forward(q, k, v, True, scale, bounds)
    kernels.backward(grad, q, k, v, out, lse, True, scale, bounds)


def best_of(call, repeats=15):
    took = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        took.append(time.perf_counter() - begun)
    return min(took)


def short_blocks():
    torch.set_num_threads(1)
    print("The kernel on short causal blocks, 4 heads of 64, fp32, one core, against PyTorch's called plainly:")
    cases = [("one document", (0, tokens)) for tokens in (512, 1024, 2048)]
    cases += [
        (f"documents of about {mean}", random_bounds(tokens, mean))
        for mean, tokens in ((200, 1024), (200, 2048), (20, 2048))
    ]
    for name, bounds in cases:
        tensors = inputs(bounds[-1], 4)
        ours, plain = (best_of(functools.partial(f, tensors, bounds, 0.125)) for f in (in_bands, plainly))
        report(f"  {bounds[-1]:,} tokens, {name}", ours, "plain calls", plain)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=8)
    arguments = parser.parse_args()
    keep_freed_memory()
    short_blocks()
    long_sequences(arguments.tokens, arguments.heads)
