"""What the modes of context parallelism and of recomputation cost, as ratios within one run.

    python tests/benchmarks/bench_modes.py                    # 8,192 and 4,096 tokens, fp32: half a minute

First two ranks of this machine, a core each: attention with heads exchanged for sequence against the ring. Then one
process: a step of a small decoder that recomputes nothing, all but attention, or everything, and what a layer keeps.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.context_parallel.ring import ring_attention
from megatron_ultralong.context_parallel.ulysses import ulysses_attention
from megatron_ultralong.engine import groups
from megatron_ultralong.model.build import build_model
from megatron_ultralong.rope.scaling import RopeScaling

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.context_parallel.test_activation_recomputation import Storages, StorageWeakRef

HEADS, WIDTH = 8, 64
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HEADS * WIDTH,
    "intermediate_size": 1792,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


def attention_on(rank, store, tokens, results):
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    ways = {
        "ring": lambda *qkv: ring_attention(*qkv, group=dist.group.WORLD),
        "heads": lambda *qkv: ulysses_attention(*qkv, heads_group=dist.group.WORLD, ring_group=None),
    }
    for kv_heads in (8, 2, 1):
        for name, attend in ways.items():
            shapes = [(1, tokens // 2, heads, WIDTH) for heads in (HEADS, kv_heads, kv_heads, HEADS)]
            q, k, v, grad = (torch.randn(shape, requires_grad=True) for shape in shapes)
            for _ in range(2):
                dist.barrier()
                begun = time.perf_counter()
                attend(q, k, v).backward(grad)
                took = torch.tensor(time.perf_counter() - begun)
                dist.all_reduce(took, dist.ReduceOp.MAX)
                if rank == 0:
                    results[kv_heads, name] = min(took.item(), results.get((kv_heads, name), 1e9))
    dist.destroy_process_group()


def step(recompute, layers, tokens, storages=None):
    """Seconds of forward and backward, and bytes alive between them, if they are to be counted."""
    torch.manual_seed(0)
    rope = RopeScaling(base=1e4, original_length=tokens)
    model = build_model({**MODEL, "num_hidden_layers": layers}, rope, ParallelConfig(recompute=recompute), "fp32")
    ids, positions = torch.randint(0, 256, (1, tokens)), torch.arange(tokens)[None]
    parameters = {StorageWeakRef(p.untyped_storage()).cdata for p in model.parameters()}
    begun = time.perf_counter()
    with storages or contextlib.nullcontext():
        loss = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=None,
            labels=ids,
            loss_mask=torch.ones(1, tokens),
            packed_seq_params=SequenceLayout(position_ids=positions),
        )
    kept = sum(storages.sizes[storage] for storage in storages.alive() - parameters) if storages else None
    loss.sum().backward()
    return time.perf_counter() - begun, kept


def seconds(recompute, tokens):
    """The least of two steps of two layers."""
    return min(step(recompute, 2, tokens)[0] for _ in range(2))


def bytes_of_a_layer(recompute, tokens):
    """A token: what two layers keep less what one does."""
    two, one = (step(recompute, layers, tokens, Storages())[1] for layers in (2, 1))
    return (two - one) / tokens


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, default=8192)
    tokens = options.parse_args().tokens
    with tempfile.TemporaryDirectory() as folder, mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(attention_on, (str(Path(folder) / "store"), tokens, results), nprocs=2)
        print(f"attention over {tokens:,} tokens on two ranks, {HEADS} heads of {WIDTH}, forward and backward:")
        for kv_heads in (8, 2, 1):
            ring, heads = results[kv_heads, "ring"], results[kv_heads, "heads"]
            print(
                f"  {kv_heads} KV heads: ring {ring:5.2f} s, heads exchanged {heads:5.2f} s, {heads / ring:.2f} of it"
            )
    tokens //= 2
    with groups.single_process():
        print(f"a step of two layers, {tokens:,} tokens, forward and backward; bytes kept a token and layer:")
        seconds("none", 256)  # the first step of a process is slow
        plain = seconds("none", tokens)
        for recompute in ("none", "selective", "full"):
            took = plain if recompute == "none" else seconds(recompute, tokens)
            print(
                f"  {recompute:9} {took:5.2f} s, {took / plain:.2f} of none;"
                f" {bytes_of_a_layer(recompute, 256):,.0f} bytes"
            )


if __name__ == "__main__":
    main()
