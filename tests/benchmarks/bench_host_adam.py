"""Adam on the host against what its memory's rate allows, measured in the same run.

    python tests/benchmarks/bench_host_adam.py [--threads 1 2] [--pieces 18 20 21 22 23] [--repeats 5]

A model of 75M weights with `optimizer.offload_fraction = 1`, in bf16 with bf16 gradients; what is timed is
`HostAdam.step`, with clipping. On a CPU its copies "over the link" are copies in memory, which a GPU's engines would
make. The bound: three fp32 tensors read and written once, 24 bytes an element, at the rate of a copy between two
arrays that no cache holds. Copies, steps and PyTorch's fused AdamW alone alternate; medians are compared. Then, by
`planning/step_time.py`'s formula, what a step of 8.03 billion weights takes at that rate of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import _gpu_run

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import groups, host_adam
from megatron_ultralong.training.step import train_step

SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 16384}
HEADS = {"num_attention_heads": 12, "num_key_value_heads": 4}
STATE, EVERYTHING = 24, 52
"""Bytes of host memory an element: the state read and written; with all that `planning/step_time.py` counts."""


def host_of_a_run() -> tuple[host_adam.HostAdam, int]:
    """After a step, so that there is a gradient; and its elements."""
    config = _gpu_run.configuration(64, precision="bf16", device="cpu")
    optimizer = dataclasses.replace(config.optimizer, offload_fraction=1.0)
    train = dataclasses.replace(config.train, grad_reduce_in_fp32=False)
    run = _gpu_run.make(
        dataclasses.replace(config, optimizer=optimizer, train=train), {**_gpu_run.LLAMA_8B, **SIZES, **HEADS}
    )
    train_step(run, 0)
    run.ahead.wait()
    (host,) = host_adam.of(run.optimizer)
    return host, sum(len(one.weights) for one in host.hosted)


def fused(elements: int) -> Callable[[], object]:
    """PyTorch's own fused AdamW of one fp32 parameter."""
    parameter = torch.nn.Parameter(torch.randn(elements))
    parameter.grad = torch.randn(elements)
    return torch.optim.AdamW([parameter], fused=True).step


def seconds(call: Callable[[], object]) -> float:
    """Of one call: processor time, all threads alike, which others on the machine disturb less than the clock's."""
    begun = time.process_time()
    call()
    return (time.process_time() - begun) / torch.get_num_threads()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pieces", type=int, nargs="+", default=[18, 20, 21, 22, 23], help="logarithms to base 2")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    source, target = (torch.zeros(2**27, dtype=torch.uint8) for _ in range(2))
    with groups.single_process(ParallelConfig(device="cpu")):
        host, elements = host_of_a_run()
        alone = fused(elements)
        alone()
        print(f"{elements / 1e6:.1f}M weights; GB/s count a copy's bytes twice, and {STATE} bytes an element of Adam")
        for threads in options.threads:
            torch.set_num_threads(threads)
            for piece in options.pieces:
                host_adam.PIECE = 2**piece
                taken: dict[str, list[float]] = {"copy": [], "step": [], "fused": []}
                for _ in range(options.repeats):
                    taken["copy"].append(seconds(lambda: target.copy_(source)))
                    taken["step"].append(seconds(lambda: host.step(0.5)))
                    taken["fused"].append(seconds(alone))
                copy, step, kernel = (statistics.median(each) for each in taken.values())
                rate = 2 * source.nbytes / copy
                print(
                    f"{threads} threads, pieces of 2^{piece}: copy {rate / 1e9:.1f} GB/s; Adam on the host "
                    f"{elements / step / 1e6:.0f}M weights/s, {STATE * elements / step / rate:.2f} of the bound; "
                    f"PyTorch's fused AdamW {elements / kernel / 1e6:.0f}M, {STATE * elements / kernel / rate:.2f}; "
                    f"8.03G weights: {8.03e9 * step / elements:.0f} s, by formula {8.03e9 * EVERYTHING / rate:.0f} s"
                )


if __name__ == "__main__":
    main()
