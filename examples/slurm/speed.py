"""How fast the processes of a job are, each at what training will ask of it, so that a slow node is named beforehand.

Four figures a process: an all-gather in its tensor-parallel group, a send to its neighbour in its context-parallel
group, one block of attention, and for one process a node a file written and synced where checkpoints will lie. A rate
is what came in (or was written) over the median time of a few tries. `report` says the median over all processes and
the slowest with its node, and warns of one below half the median: a bad cable, a throttled GPU or a bad mount costs
every step, since all wait for the slowest. Takes a few seconds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PAYLOAD = 64 * 2**20
"""Bytes that each process sends, and that each node writes."""
TRIES = 5
ROWS = {"gpu": 8192, "cpu": 1024}
"""Positions of the attention block, of 8 query and 2 key-value heads of 128."""
SLOW = 0.5
FIGURES = ("TP all-gather", "CP send", "attention block", "file")
UNITS = ("GB/s", "GB/s", "TFLOPS", "GB/s")


def groups(size: int, tensor: int, context: int) -> tuple[list[list[int]], list[list[int]]]:
    """Every tensor-parallel and every context-parallel group of a job, in megatron-core's order: TP, then CP."""
    block = tensor * context
    tp = [list(range(first, first + tensor)) for first in range(0, size, tensor)]
    cp = [
        list(range(first + place, first + block, tensor)) for first in range(0, size, block) for place in range(tensor)
    ]
    return tp, cp


def measure(device: str, folder: Path, tensor: int, context: int) -> list[float]:
    """This process's figures, in the order and the units of FIGURES; 0 for what it has no part in. All call it."""
    import torch.distributed as dist

    tp, cp = groups(dist.get_world_size(), tensor, context)
    return [
        _all_gather(device, _own(tp)),
        _send(device, _own(cp)),
        _attention(device),
        _file(folder) if os.environ["LOCAL_RANK"] == "0" else 0.0,
    ]


def _own(groups: list[list[int]]) -> tuple[Any, list[int]]:
    """This process's group and its ranks; every process makes every group, as torch.distributed asks."""
    import torch.distributed as dist

    made = [(dist.new_group(ranks), ranks) for ranks in groups]
    return next((group, ranks) for group, ranks in made if dist.get_rank() in ranks)


def _seconds(call: Callable[[], Any], device: str) -> float:
    """The median of a few tries, after one that sets everything up."""
    import torch

    times = []
    for _ in range(TRIES + 1):
        if device == "gpu":
            torch.cuda.synchronize()
        started = time.monotonic()
        call()
        if device == "gpu":
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return statistics.median(times[1:])


def _all_gather(device: str, own: tuple[Any, list[int]]) -> float:
    import torch
    import torch.distributed as dist

    group, ranks = own
    if len(ranks) == 1:
        return 0.0
    part = torch.zeros(PAYLOAD, dtype=torch.uint8, device="cuda" if device == "gpu" else "cpu")
    whole = part.new_empty(len(ranks) * PAYLOAD)
    seconds = _seconds(lambda: dist.all_gather_into_tensor(whole, part, group=group), device)
    return (len(ranks) - 1) * PAYLOAD / seconds / 1e9


def _send(device: str, own: tuple[Any, list[int]]) -> float:
    import torch
    import torch.distributed as dist

    group, ranks = own
    if len(ranks) == 1:
        return 0.0
    place = ranks.index(dist.get_rank())
    to, source = ranks[(place - 1) % len(ranks)], ranks[(place + 1) % len(ranks)]
    out = torch.zeros(PAYLOAD, dtype=torch.uint8, device="cuda" if device == "gpu" else "cpu")
    incoming = torch.empty_like(out)

    def exchange() -> None:
        operations = [dist.P2POp(dist.isend, out, to, group), dist.P2POp(dist.irecv, incoming, source, group)]
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    return PAYLOAD / _seconds(exchange, device) / 1e9


def _attention(device: str) -> float:
    import torch

    from megatron_ultralong.context_parallel import kernels

    rows, heads, dim = ROWS[device], 8, 128
    options = {"device": "cuda", "dtype": torch.bfloat16} if device == "gpu" else {"dtype": torch.float32}
    q = torch.randn(1, rows, heads, dim, **options)
    k, v = (torch.randn(1, rows, heads // 4, dim, **options) for _ in range(2))
    seconds = _seconds(lambda: kernels.forward(q, k, v, True, dim**-0.5), device)
    return 2 * rows * rows * heads * dim / seconds / 1e12  # two products over half of the square


def _file(folder: Path) -> float:
    content = os.urandom(2**20) * (PAYLOAD // 2**20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".health_") as stream:
        started = time.monotonic()
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
        return PAYLOAD / (time.monotonic() - started) / 1e9


def report(rows: Sequence[Sequence[float]], nodes: Sequence[str]) -> Iterator[str]:
    """One line a figure, and a warning where the slowest is below half the median.

    Args:
        rows: what `measure` gave on each rank.
        nodes: each rank's node.
    """
    for number, (figure, unit) in enumerate(zip(FIGURES, UNITS, strict=True)):
        found = [(row[number], rank) for rank, row in enumerate(rows) if row[number] > 0]
        if not found:
            continue
        median = statistics.median(rate for rate, _ in found)
        slowest, rank = min(found)
        line = f"{figure}: {median:.3g} {unit} at the median, slowest {slowest:.3g} on {nodes[rank]} (rank {rank})"
        yield f"warning: {line}: every step waits for it; look at that node" if slowest < SLOW * median else line
