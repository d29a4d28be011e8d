"""The error of bf16 ring attention against fp64, by the number of ranks; draws docs/ring_error.png.

    python tests/benchmarks/ring_error.py

The yardstick is PyTorch's own flash attention in one process, called plainly in bf16 on the same numbers: the ring
may be twice as far off, and must not get worse as it grows.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from megatron_ultralong.context_parallel import kernels
from megatron_ultralong.context_parallel.ring import ring_attention

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.context_parallel.ring_ranks import Ranks, flash_in_one_process, with_gradients

TOKENS, HEADS, KV_HEADS, HEAD_DIM = 1920, 8, 2, 64
PARTS = ("out", "dq", "dk", "dv")


def relative_errors(found, wanted):
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]


def measure(ranks):
    """Relative errors of out, dq, dk, dv: of PyTorch's flash attention, and of the ring by its number of ranks."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, TOKENS, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    tensors = [torch.randn(shape, dtype=torch.float64, generator=generator).bfloat16() for shape in shapes]
    wide = [x.double() for x in tensors]
    wanted = with_gradients(lambda *qkv: ring_attention(*qkv, group=None), *wide)
    plain = with_gradients(lambda *qkv: kernels.reference(*qkv, HEAD_DIM**-0.5), *wide)
    assert max(relative_errors(wanted, plain)) < 1e-13  # what is compared with is exact
    pytorch = relative_errors(with_gradients(flash_in_one_process, *tensors), wanted)
    return pytorch, {size: relative_errors(ranks.attend(size, tensors), wanted) for size in (1, 2, 3, 4, 8)}


def draw(pytorch, errors, path):
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for place, part in enumerate(PARTS):
        (line,) = axes.plot(list(errors), [row[place] for row in errors.values()], marker="o", label=part)
        axes.axhline(2 * pytorch[place], color=line.get_color(), linestyle=":", linewidth=1)
    axes.plot([], [], color="grey", linestyle=":", label="twice PyTorch's in one process")
    axes.set(
        xlabel="ranks in the ring",
        ylabel="relative error against fp64",
        xticks=list(errors),
        ylim=(0, 2.8 * max(pytorch)),
    )
    axes.set_title(f"bf16 ring attention, {TOKENS:,} tokens, {HEADS} heads over {KV_HEADS} of {HEAD_DIM}, causal")
    axes.legend(ncols=2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    with Ranks() as ranks:
        pytorch, errors = measure(ranks)
    print("PyTorch:", "  ".join(f"{part} {error:.2e}" for part, error in zip(PARTS, pytorch, strict=True)))
    for size, row in errors.items():
        told = "  ".join(
            f"{part} {error:.2e} ({error / one:.2f} x)" for part, error, one in zip(PARTS, row, pytorch, strict=True)
        )
        print(f"{size} ranks: {told}")
    draw(pytorch, errors, Path(__file__).parents[2] / "docs" / "ring_error.png")
