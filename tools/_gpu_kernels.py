"""Rates of one device: its ceilings, block attention by kernel and length, a ring's rank, folding and copying.

Attention's operations are those its kernels make: two products forward and five backward, at two operations a
multiply-add, for each pair of a query and a key. A ring is one rank's whole work with everything but the wire: what it
would receive is copied to where it would arrive.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from _gpu_timing import Clock, Row, free, sweep, timed
from torch import Tensor

from megatron_ultralong.context_parallel import kernel_choice, kernels, online_softmax, rectangles
from megatron_ultralong.context_parallel import ring as ring_module

_WAYS = {"forward": 4, "backward": 10}


@dataclasses.dataclass(frozen=True)
class Heads:
    """One rank's heads, and the dtype of all attention here."""

    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    def tensors(self, length: int, device: torch.device) -> list[Tensor]:
        """q, k, v and the output's gradient, [1, length, heads, head_dim]."""
        counts = (self.heads, self.kv_heads, self.kv_heads, self.heads)
        shapes = [(1, length, count, self.head_dim) for count in counts]
        return [torch.randn(shape, device=device, dtype=self.dtype) for shape in shapes]

    def kind(self, device: torch.device) -> kernel_choice.Heads:
        """As the choice of a kernel asks for them."""
        return kernel_choice.Heads(device, self.dtype, self.heads, self.kv_heads, self.head_dim)

    def operations(self, pairs: float, way: str) -> float:
        """Of a block or a rank."""
        return _WAYS[way] * pairs * self.heads * self.head_dim


def ceilings(device: torch.device, size: int, copied: int, clock: Clock) -> Row:
    """Operations a second of a square bf16 product, and bytes a second that a copy reads and writes."""
    pair = [torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2)]
    product = timed(lambda: torch.mm(*pair), device, clock.limit / 2)
    pair.clear()
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source), device, clock.limit / 2)
    return {
        "matmul_size": size,
        "matmul_flops": 2 * size**3 / product.seconds,
        "copy_bytes": copied,
        "copy_bytes_per_second": 2 * copied / copy.seconds,
    }


def attention(device: torch.device, heads: Heads, lengths: tuple[int, ...], clock: Clock) -> list[Row]:
    """Causal blocks by kernel and length; a kernel that is not here, or fails its check, says why."""
    offered = kernel_choice.GPU if device.type == "cuda" else (kernel_choice.CPU,)
    failed = kernel_choice.verify(heads.kind(device)) if device.type == "cuda" else {}
    found: list[Row] = []
    try:
        for number, kernel in enumerate(offered):
            kernel_choice.use(kernel.name)  # type: ignore[arg-type]
            chosen = [kernel_choice.choose(heads.kind(device), False, back, False) for back in (False, True)]
            if any(one.name != kernel.name for one in chosen):
                reason = failed.get(kernel.name, "not installed, or not for this device")
                found.append({"kernel": kernel.name, "left_out": reason})
                continue
            rows = [{"kernel": kernel.name, "tokens": length} for length in lengths]
            share = Clock(clock.left / (len(offered) - number))
            found += sweep(rows, "tokens", functools.partial(_block, device, heads), share)
    finally:
        kernel_choice.use("auto")
    return found


def _block(device: torch.device, heads: Heads, row: Row, limit: float) -> None:
    length, scale = row["tokens"], heads.head_dim**-0.5
    q, k, v, grad = heads.tensors(length, device)
    out, lse = kernels.forward(q, k, v, True, scale)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: kernels.forward(q, k, v, True, scale),
        "backward": lambda: kernels.backward(grad, q, k, v, out, lse, True, scale),
    }
    for way, call in calls.items():
        row[f"{way}_seconds"] = timed(call, device, limit / 2).seconds
        row[f"{way}_flops"] = heads.operations(length * (length + 1) / 2, way) / row[f"{way}_seconds"]


def folding(device: torch.device, heads: Heads, lengths: tuple[int, ...], clock: Clock) -> list[Row]:
    """What a ring adds to a block, each beside the block's own seconds: folding, adding gradients, copying keys."""
    rows = [{"tokens": length} for length in lengths]
    return sweep(rows, "tokens", functools.partial(_fold, device, heads), clock)


def _fold(device: torch.device, heads: Heads, row: Row, limit: float) -> None:
    _block(device, heads, row, limit / 2)
    q, k, v, _ = heads.tensors(row["tokens"], device)
    total = torch.zeros(q.shape, device=device)
    lse, block_lse = (torch.zeros(q.shape[:3], device=device) for _ in range(2))
    keys, buffer = torch.stack((k, v)), torch.stack((k, v))
    gradient = torch.zeros(k.shape, device=device)

    def add() -> None:
        online_softmax.add(total, q)
        online_softmax.add(gradient, k)
        online_softmax.add(gradient, v)

    row["fold_seconds"] = timed(lambda: online_softmax.fold(total, lse, q, block_lse), device, limit / 6).seconds
    row["add_seconds"] = timed(add, device, limit / 6).seconds
    row["copy_seconds"] = timed(lambda: buffer.copy_(keys), device, limit / 6).seconds
    row["forward_share"] = (row["fold_seconds"] + row["copy_seconds"]) / row["forward_seconds"]
    row["backward_share"] = (row["add_seconds"] + row["copy_seconds"]) / row["backward_seconds"]


class _Copied:
    """In the place of ring_exchange.Neighbours: what would arrive is copied from what this rank has."""

    def __init__(self, share: Tensor) -> None:
        self.share = share

    def start(
        self, outgoing: Tensor, sent: Any, incoming: Tensor, received: rectangles.Ranges, *, what: str, tag: int
    ) -> _Copied:
        """Rows of keys from this rank's own, of gradients from those it sends."""
        source = self.share if incoming.dtype == self.share.dtype else outgoing
        for start, stop in received:
            incoming[start:stop].copy_(source[start:stop])
        return self

    def finish(self) -> None:
        """It is there."""


def ring(device: torch.device, heads: Heads, cases: tuple[tuple[int, int], ...], clock: Clock) -> list[Row]:
    """One rank of a ring of so many, with so many tokens a rank, against the same kernel on a block of that length."""
    rows = [{"tokens_a_rank": length, "ranks": ranks, "work": length**2 * ranks} for length, ranks in cases]
    found = sweep(rows, "work", functools.partial(_rank, device, heads), clock, power=1)
    for row in found:
        del row["work"]
    return found


def _rank(device: torch.device, heads: Heads, row: Row, limit: float) -> None:
    length, ranks, scale = row["tokens_a_rank"], row["ranks"], heads.head_dim**-0.5
    plain: Row = {"tokens": length}
    _block(device, heads, plain, limit / 3)
    plan = rectangles.plan(length * ranks, 0, ranks, None, True)
    q, k, v, grad = heads.tensors(length, device)
    neighbours: Any = _Copied(torch.stack((k.transpose(0, 1), v.transpose(0, 1)), dim=1))
    call = ring_module._Call(plan, neighbours, True, scale)
    out, lse = ring_module._attend(q, k, v, call)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: ring_module._attend(q, k, v, call),
        "backward": lambda: ring_module._differentiate((grad, q, out, lse), k, v, call),
    }
    for way, once in calls.items():
        row[f"{way}_seconds"] = timed(once, device, limit / 3).seconds
        row[f"{way}_flops"] = heads.operations(pairs(plan), way) / row[f"{way}_seconds"]
        row[f"{way}_of_plain"] = row[f"{way}_flops"] / plain[f"{way}_flops"]
    together = [sum(x[f"{way}_seconds"] for way in _WAYS) for x in (row, plain)]
    row["of_plain"] = pairs(plan) / (length * (length + 1) / 2) * together[1] / together[0]
    free()


def pairs(plan: rectangles.Plan) -> float:
    """Of a query and a key, that a rank with one document computes: its own triangle, and the others' rectangles."""
    own = plan.documents[-1]
    blocks = [block for step in plan.steps[1:] for block in step.blocks]
    return own * (own + 1) / 2 + sum((b.q_stop - b.q_start) * (b.k_stop - b.k_start) for b in blocks)
