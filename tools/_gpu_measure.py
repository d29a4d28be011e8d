"""All measurements of tools/gpu_check.py, one after another, each within its share of the time."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any, Literal

import _gpu_kernels
import _gpu_steps
import torch
from _gpu_run import LLAMA_8B
from _gpu_timing import Clock

from megatron_ultralong.config.sections import ParallelConfig
from megatron_ultralong.engine import groups

logger = logging.getLogger(__name__)

_K = 1024
PARTS = {
    "measure": {
        "ceilings": 0.02,
        "attention": 0.14,
        "folding": 0.04,
        "ring": 0.12,
        "loss": 0.03,
        "layer": 0.10,
        "steps": 0.55,
    },
    "longest": {"longest": 1.0},
}
"""What each part measures, and its share of the part's time; what one does not need, the next ones have."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        matmul: edge of the square product that is the ceiling.
        copied: bytes of the copy that is.
        heads: of all attention.
        blocks: lengths of causal blocks.
        folded: lengths of blocks that are folded.
        rings: tokens a rank and ranks.
        model: config.json of the layers and steps, but for their number.
        positions: of head and loss.
        layer: lengths of one layer.
        steps: layers, tensor-parallel ranks of whose shapes they have one's, and the lengths of their steps.
        longest: layers, the first length and the last, and documents' length, of the search for the longest sequence.
    """

    matmul: int
    copied: int
    heads: _gpu_kernels.Heads
    blocks: tuple[int, ...]
    folded: tuple[int, ...]
    rings: tuple[tuple[int, int], ...]
    model: dict[str, Any]
    positions: tuple[int, ...]
    layer: tuple[int, ...]
    steps: tuple[tuple[int, int, tuple[int, ...]], ...]
    longest: tuple[int, int, int, int]


FULL = Sizes(
    matmul=16 * _K,
    copied=4 * _K**3,
    heads=_gpu_kernels.Heads(),
    blocks=(8 * _K, 32 * _K, 64 * _K, 128 * _K, 256 * _K),
    folded=(8 * _K, 64 * _K, 128 * _K),
    rings=((16 * _K, 4), (64 * _K, 2), (64 * _K, 8), (128 * _K, 4)),
    model=LLAMA_8B,
    positions=(16 * _K, 128 * _K),
    layer=(64 * _K, 128 * _K, 256 * _K),
    steps=(
        (8, 1, (128 * _K,)),
        (4, 1, (128 * _K, 256 * _K)),
        (2, 1, (128 * _K, 256 * _K, 512 * _K)),
        (2, 8, (256 * _K, 512 * _K, 1024 * _K)),
    ),
    longest=(2, 64 * _K, 8192 * _K, 8 * _K),
)
SMALL = Sizes(
    matmul=64,
    copied=4096,
    heads=_gpu_kernels.Heads(4, 2, 16),
    blocks=(32, 64),
    folded=(64,),
    rings=((64, 2), (64, 4)),
    model={
        **LLAMA_8B,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
    },
    positions=(64,),
    layer=(64,),
    steps=((2, 1, (64, 128)), (2, 2, (64,))),
    longest=(2, 64, 128, 32),
)


def measure(
    part: Literal["measure", "longest"], kind: Literal["gpu", "cpu"], memory: int, sizes: Sizes, limit: float
) -> dict[str, Any]:
    """One part; what does not fit into the time or the memory is in the results as `left_out`, with the reason.

    Args:
        part: which.
        kind: of device.
        memory: bytes of the device; 0: not known.
        sizes: what is measured.
        limit: seconds for all.
    """
    whole, shares = Clock(limit), PARTS[part]
    found: dict[str, Any] = {}
    with groups.single_process(ParallelConfig(device=kind)) as device:
        for number, name in enumerate(shares):
            logger.info("%s:", name)
            clock = Clock(whole.left * shares[name] / sum(list(shares.values())[number:]))
            matmul = found["ceilings"]["matmul_flops"] if found else math.nan
            found[name] = _section(name, _gpu_steps.Place(device, memory, sizes.model, matmul), sizes, clock)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return found


def _section(name: str, place: _gpu_steps.Place, sizes: Sizes, clock: Clock) -> Any:
    device, heads = place.device, sizes.heads
    return {
        "ceilings": lambda: _gpu_kernels.ceilings(device, sizes.matmul, sizes.copied, clock),
        "attention": lambda: _gpu_kernels.attention(device, heads, sizes.blocks, clock),
        "folding": lambda: _gpu_kernels.folding(device, heads, sizes.folded, clock),
        "ring": lambda: _gpu_kernels.ring(device, heads, sizes.rings, clock),
        "loss": lambda: _gpu_steps.loss(place, sizes.positions, clock),
        "layer": lambda: _gpu_steps.layers(place, sizes.layer, clock),
        "steps": lambda: _gpu_steps.steps(place, sizes.steps, clock),
        "longest": lambda: _gpu_steps.longest(place, *sizes.longest, clock),
    }[name]()
