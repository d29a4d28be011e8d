"""bf16 products on this CPU: as PyTorch makes them, in fp32 beside them, and widened (engine/cpu_products.py).

    python tests/benchmarks/bench_cpu_products.py

GFLOP/s of one core. fp32 is what bounds a widened product; the last column says how near it comes, copies included.
"""

from __future__ import annotations

import time

import torch

from megatron_ultralong.engine import cpu_products

SHAPES = ((4096, 256, 1024), (4096, 1024, 256), (256, 4096, 1024), (2048, 2048, 2048))
KINDS = ("forward, x W^T", "backward, g W", "backward, g^T x")


def rates(dtype: torch.dtype) -> list[float]:
    """GFLOP/s of every shape and kind, in turn."""
    found = []
    for m, k, n in SHAPES:
        a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        for prepare in ((a, b.t().contiguous().t()), (a, b), (a.t().contiguous().t(), b)):
            found.append(2e-9 * m * k * n / best(*prepare))
    return found


def best(a: torch.Tensor, b: torch.Tensor) -> float:
    """Seconds of the fastest product of those that fit into two seconds, three at least."""
    end, found = time.perf_counter() + 2, []
    while len(found) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"bf16 instructions: {cpu_products.has_bf16()}, {torch.backends.cpu.get_cpu_capability()}")
    plain, fp32 = rates(torch.bfloat16), rates(torch.float32)
    cpu_products.widen()
    widened = rates(torch.bfloat16)
    print(f"{'[m, k] [k, n]':18} {'':16} {'bf16':>7} {'fp32':>7} {'widened':>8} {'/ bf16':>7} {'/ fp32':>7}")
    names = [(f"{m}, {k}, {n}", kind) for m, k, n in SHAPES for kind in KINDS]
    for (shape, kind), a, b, c in zip(names, plain, fp32, widened, strict=True):
        print(f"{shape:18} {kind:16} {a:7.2f} {b:7.2f} {c:8.2f} {c / a:7.1f} {c / b:7.2f}")


if __name__ == "__main__":
    main()
