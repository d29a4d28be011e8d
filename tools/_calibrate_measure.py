"""The rates of one process of a machine while all its others do the same: products, attention, memory, messages.

Every process measures at once, as all compute at once in training, so what they share (cores' caches, memory, PCIe) is
shared here too; the profile has the mean over them. Each rate is the median of up to ten calls.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from _gpu_timing import timed

from megatron_ultralong import provenance
from megatron_ultralong.context_parallel import kernels
from megatron_ultralong.planning.hardware_profile import (
    AttentionRate,
    CopyRate,
    HardwareProfile,
    LinkRate,
    MatmulRate,
    Source,
    like_device,
)

_CHAIN = 100  # operators of the chain whose launches are timed
_SMALL = 256  # numbers in a message of which only its latency counts


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        widths: of square matrices.
        rows: that are multiplied by them.
        blocks: lengths of attention's blocks.
        heads: query heads, four to a key-value head.
        head_dim: of each.
        copied: bytes that an addition reads and writes.
        message: bytes on one rank.
    """

    widths: tuple[int, ...]
    rows: int
    blocks: tuple[int, ...]
    heads: int
    head_dim: int
    copied: tuple[int, ...]
    message: int


CPU = Sizes(
    widths=(64, 128, 256, 512, 1024, 2048),
    rows=1024,
    blocks=(128, 256, 512, 1024, 2048, 4096),
    heads=4,
    head_dim=64,
    copied=(2**16, 2**18, 2**20, 2**22, 2**24, 2**26),
    message=2**22,
)
GPU = Sizes(
    widths=(256, 512, 1024, 2048, 4096, 8192),
    rows=16384,
    blocks=(1024, 4096, 16384, 65536),
    heads=32,
    head_dim=128,
    copied=(2**24, 2**28, 2**32),
    message=2**28,
)


def measure(device: torch.device, dtype: torch.dtype, sizes: Sizes, limit: float) -> HardwareProfile:
    """This machine's profile, the mean over all processes; all of them call it.

    Args:
        device: of this process.
        dtype: of products and attention.
        sizes: what to measure.
        limit: seconds for all of it, roughly.
    """
    calls = 3 * len(sizes.widths) + 2 * len(sizes.blocks) + len(sizes.copied) + 18
    each = limit / calls
    matmul = [(width, _matmul(device, dtype, sizes.rows, width, each)) for width in sizes.widths]
    attention = [(block, *_attention(device, dtype, sizes, block, each)) for block in sizes.blocks]
    copy = [(size, _copy(device, size, each)) for size in sizes.copied]
    exponential = _exponential(device, sizes.copied[-1] // 8, copy[-1][1], each)
    launch = _launch(device, each)
    links = _links(device, sizes.message, each)
    host = _host(device, sizes.copied[-1] // 2, each)
    return HardwareProfile(
        name=_name(device),
        precision="bf16" if dtype == torch.bfloat16 else "fp32",
        memory=_memory(device),
        matmul=tuple(MatmulRate(width, _mean(rate, device)) for width, rate in matmul),
        attention=tuple(AttentionRate(n, _mean(a, device), _mean(b, device)) for n, a, b in attention),
        copy=tuple(CopyRate(size, _mean(rate, device)) for size, rate in copy),
        commit=provenance.git_commit(),
        date=datetime.date.today().isoformat(),
        exponential=_mean(exponential, device),
        launch=_mean(launch, device),
        asynchronous=device.type == "cuda",
        domain=int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if links else None,
        links=tuple(
            LinkRate(scope, kind, _mean(rate, device), _mean(latency, device)) for scope, kind, rate, latency in links
        ),
        host_link=_mean(host[0], device),
        host_copy=_mean(host[1], device),
        sources=_sources(bool(links)),
        like=like_device(_name(device), _memory(device)) if device.type == "cuda" else None if links else "cpu",
    )


def _sources(linked: bool) -> dict[str, Source]:
    names = ["memory", "matmul", "attention", "copy", "exponential", "launch", "host_link", "host_copy"]
    processes = f"{dist.get_world_size()} processes at once" if dist.is_initialized() else "one process"
    here = Source("measured", f"tools/calibrate.py, {processes}")
    return dict.fromkeys([*names, "links", "domain"] if linked else names, here)


def _mean(value: float, device: torch.device) -> float:
    """Over all processes."""
    if not dist.is_initialized():
        return value
    total = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {torch.get_num_threads()} thread(s)"


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _matmul(device: torch.device, dtype: torch.dtype, rows: int, width: int, limit: float) -> float:
    """Of a linear layer's three products in turn: output, gradient of its input, gradient of its weight."""
    x, y = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
    weight = torch.randn(width, width, device=device, dtype=dtype)
    calls = (lambda: x @ weight.t(), lambda: y @ weight, lambda: y.t() @ x)
    return 6 * rows * width**2 / sum(timed(call, device, limit).seconds for call in calls)


def _attention(
    device: torch.device, dtype: torch.dtype, sizes: Sizes, length: int, limit: float
) -> tuple[float, float]:
    """Of a causal block, forward and backward."""
    counts = (sizes.heads, sizes.heads // 4, sizes.heads // 4, sizes.heads)
    q, k, v, grad = (torch.randn(1, length, n, sizes.head_dim, device=device, dtype=dtype) for n in counts)
    scale = sizes.head_dim**-0.5
    out, lse = kernels.forward(q, k, v, True, scale)
    operations = length * (length + 1) / 2 * sizes.heads * sizes.head_dim
    forward = timed(lambda: kernels.forward(q, k, v, True, scale), device, limit).seconds
    backward = timed(lambda: kernels.backward(grad, q, k, v, out, lse, True, scale), device, limit).seconds
    return 4 * operations / forward, 10 * operations / backward


def _copy(device: torch.device, size: int, limit: float) -> float:
    """Of an addition of two tensors into a third, which PyTorch has to ask memory for."""
    a, b = (torch.zeros(size // 12, device=device) for _ in range(2))
    return size / timed(lambda: a + b, device, limit).seconds


def _exponential(device: torch.device, count: int, rate: float, limit: float) -> float:
    """Seconds an element beyond moving it; none on a GPU, where that hides it."""
    if device.type == "cuda":
        return 0.0
    x = torch.randn(count)
    return max(0.0, timed(lambda: x.exp(), device, limit).seconds - 8 * count / rate) / count


def _launch(device: torch.device, limit: float) -> float:
    """Seconds of an operator on a few numbers, its share of autograd and of backward included."""
    start = torch.zeros(16, device=device, requires_grad=True)

    def chain() -> None:
        x = start
        for _ in range(_CHAIN):
            x = x * 1.5
        x.sum().backward()

    return timed(chain, device, limit).seconds / (2 * _CHAIN)


def _links(device: torch.device, payload: int, limit: float) -> list[tuple[Any, Any, float, float]]:
    """Scope, kind, rate and latency of each kind of message, within a machine and between machines."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return []
    local, world = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), dist.get_world_size()
    found = []
    groups = {
        "domain": [list(range(first, first + local)) for first in range(0, world, local)],
        "network": [list(range(first, world, local)) for first in range(local)],
    }
    for scope, members in groups.items():
        if len(members[0]) == 1:
            continue
        made = [(dist.new_group(ranks), ranks) for ranks in members]
        group, ranks = next((group, ranks) for group, ranks in made if dist.get_rank() in ranks)
        for kind, call in _messages(group, ranks, device).items():
            found.append((scope, kind, *_rate(call, kind, len(ranks), payload, group, device, limit)))
    return found


def _rate(
    call: Callable[[int], Callable[[], Any]],
    kind: str,
    n: int,
    payload: int,
    group: Any,
    device: torch.device,
    limit: float,
) -> tuple[float, float]:
    """Rate and latency such that `planning.messages.seconds` gives the times measured of a large and a small one."""
    small, large = (_together(call(numbers * n), group, device, limit) for numbers in (_SMALL, payload // 4 // n))
    turns, steps = (2, n - 1) if kind == "all_reduce" else (1, n - 1 if kind in ("all_gather", "reduce_scatter") else 1)
    moved = payload * (1.0 if kind == "send" else turns * (n - 1) / n)
    return moved / max(large - small, 0.05 * large), small / (turns * steps)


def _together(call: Callable[[], Any], group: Any, device: torch.device, limit: float) -> float:
    """The median of as many calls as fit into the limit, of which all ranks of the group make the same number."""
    call()
    slowest = torch.tensor([timed(call, device, 0.0).seconds], device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=group)
    repeats = int(min(10, max(1, limit / float(slowest))))
    return statistics.median(timed(call, device, 0.0).seconds for _ in range(repeats))


def _messages(group: Any, ranks: list[int], device: torch.device) -> dict[str, Callable[[int], Callable[[], Any]]]:
    """By kind: given how many numbers one rank has in all, the call to time."""
    n, place = len(ranks), ranks.index(dist.get_rank())

    def pair(numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(numbers, device=device), torch.zeros(numbers // n, device=device)

    def gather(numbers: int) -> Callable[[], Any]:
        whole, part = pair(numbers)
        return lambda: dist.all_gather_into_tensor(whole, part, group=group)

    def scatter(numbers: int) -> Callable[[], Any]:
        whole, part = pair(numbers)
        return lambda: dist.reduce_scatter_tensor(part, whole, group=group)

    def reduce(numbers: int) -> Callable[[], Any]:
        whole, _ = pair(numbers)
        return lambda: dist.all_reduce(whole, group=group)

    def trade(numbers: int) -> Callable[[], Any]:
        sent, received = torch.zeros(numbers, device=device), torch.zeros(numbers, device=device)
        return lambda: dist.all_to_all_single(received, sent, group=group)

    def send(numbers: int) -> Callable[[], Any]:
        sent, received = torch.zeros(numbers, device=device), torch.zeros(numbers, device=device)

        def exchange() -> None:
            to, source = ranks[(place + 1) % n], ranks[(place - 1) % n]
            operations = [dist.P2POp(dist.isend, sent, to, group), dist.P2POp(dist.irecv, received, source, group)]
            for work in dist.batch_isend_irecv(operations):
                work.wait()

        return exchange

    return {"all_gather": gather, "reduce_scatter": scatter, "all_reduce": reduce, "all_to_all": trade, "send": send}


def _host(device: torch.device, size: int, limit: float) -> tuple[float, float]:
    """Bytes a second between device and host, the slower way, and of a copy in the host's memory, read and written."""
    host, other = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
    copied = 2 * size / timed(lambda: other.copy_(host), torch.device("cpu"), limit).seconds
    if device.type != "cuda":
        return copied / 2, copied
    pinned, there = host.pin_memory(), torch.zeros(size, dtype=torch.uint8, device=device)
    up = timed(lambda: there.copy_(pinned, non_blocking=True), device, limit).seconds
    down = timed(lambda: pinned.copy_(there, non_blocking=True), device, limit).seconds
    return size / max(up, down), copied
