"""The MLP over tiles of the sequence ("chunked MLP"), each recomputed in backward.

A gated MLP holds several times the layer's size for all positions at once: at 262,144 positions and TP 8
Llama-3.1-8B's takes 1.9 GB for gate and up in bf16, and as much again in backward. It treats every position alone,
so a tile at a time gives the same sums; what is kept is each tile's input and output. Backward computes the MLP
once more (a third of its work on top). The same idea as tiled MLP in ALST (arXiv 2506.13996).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def tile(mlp: torch.nn.Module, chunk: int) -> None:
    """Let `mlp` (megatron-core's: hidden states [L, B, D] in, output and bias out) take `chunk` positions at a time.

    The module keeps its class and the names of its weights. Under sequence parallelism each rank's `chunk`
    positions make one tile of tp x `chunk`.
    """
    whole = mlp.forward

    def forward(hidden_LBD: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor | None]:
        parts = []
        bias = None
        for part_LBD in hidden_LBD.split(chunk):
            part, bias = checkpoint(
                whole, part_LBD, *arguments, use_reentrant=False, preserve_rng_state=False, **keywords
            )
            parts.append(part)
        return torch.cat(parts), bias

    mlp.forward = forward  # type: ignore[method-assign]
