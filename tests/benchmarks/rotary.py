"""What the rotary table costs, beside megatron-core's way: memory at 4M positions, time for 32 layers.

    python tests/benchmarks/rotary.py

Every figure of memory is from a process of its own: the growth of its peak resident size. One thread.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable

import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.model.rotary import Rotary, rotate, serving_frequencies
from megatron_ultralong.rope.recipes import ultralong

FOUR_MILLION, LAYERS = 4_194_304, 32
ROPE = ultralong(FOUR_MILLION)


def ours(length: int, ranks: int) -> torch.Tensor:
    positions = torch.cat([torch.arange(*span) for span in zigzag.spans(length, 0, ranks)])
    return Rotary(ROPE, 128, dtype=torch.bfloat16)(positions[None])


def whole(length: int, ranks: int) -> torch.Tensor:
    """megatron-core's: the angles of every position, twice over, then this rank's share of them."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32), serving_frequencies(ROPE, 128))
    return torch.cat((angles, angles), -1)[:, None, None][: length // ranks].clone()


def grown(make: Callable[[int, int], torch.Tensor], length: int, ranks: int, out: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    make(2048, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    kept = make(length, ranks)
    out.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, kept.nbytes, time.perf_counter() - start))


def memory(name: str, make: Callable[[int, int], torch.Tensor], length: int, ranks: int) -> None:
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=grown, args=(make, length, ranks, out))
    process.start()
    peak, kept, seconds = out.get()
    process.join()
    print(f"{name:<52} keeps {kept / 1e6:7.1f} MB, peak {peak / 1e3:7.1f} MB, {seconds:5.2f} s")


def speed() -> None:
    torch.set_num_threads(1)
    positions = torch.arange(8192)[None]
    query = torch.randn(8192, 1, 4, 128).bfloat16()  # a rank's heads at TP 8
    key = torch.randn(8192, 1, 1, 128).bfloat16()
    for _ in range(2):  # the first round warms up
        start = time.perf_counter()
        table = Rotary(ROPE, 128, dtype=torch.bfloat16)(positions)
        for _ in range(LAYERS):
            rotate(query, table), rotate(key, table)
        once = time.perf_counter() - start
        start = time.perf_counter()
        angles = whole(8192, 1)
        for _ in range(LAYERS):
            _apply_rotary_pos_emb_bshd(query, angles), _apply_rotary_pos_emb_bshd(key, angles)
        each = time.perf_counter() - start
    print(f"{LAYERS} layers, 8,192 positions, 4 query heads and 1 key head: {once:.2f} s, megatron-core {each:.2f} s,")
    print(f"{each / once:.1f} times as long")


if __name__ == "__main__":
    memory("ours, 4M positions over 16 ranks", ours, FOUR_MILLION, 16)
    memory("ours, 256K positions on one rank", ours, FOUR_MILLION // 16, 1)
    memory("every position first, 4M over 16 ranks", whole, FOUR_MILLION, 16)
    speed()
