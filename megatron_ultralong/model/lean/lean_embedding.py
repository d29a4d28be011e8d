"""The vocabulary-parallel embedding under sequence parallelism by tiles.

megatron-core looks up all L positions on every rank of the tensor-parallel group, [L, B, D] of which most is zero, adds
them up and splits them, and gathers their gradient whole: at 4M positions of width 4096 each is 34 GB in bf16. Here it
is a tile at a time. The same sums forward, so the same bytes; the weight's gradient is added up in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.model.lean.tensor_tiles import Tiles


def tile_embedding(embedding: torch.nn.Module, tiles: Tiles) -> None:
    """Let megatron-core's VocabParallelEmbedding, ids [B, L] in and [L / tp, B, D] out, go tile by tile.

    The module keeps its class and the name of its weight.
    """
    first: int = embedding.vocab_start_index  # type: ignore[assignment]

    def forward(ids_BL: Tensor) -> Tensor:
        out: Tensor = _Embedding.apply(ids_BL, embedding.weight, first, tiles)
        return out

    embedding.forward = forward  # type: ignore[method-assign]


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids_BL: Tensor, weight_VD: Tensor, first: int, tiles: Tiles) -> Tensor:
        own_LB = ids_BL.t() - first
        B, L = ids_BL.shape
        out_LBD = weight_VD.new_empty(L // tiles.ranks, B, weight_VD.shape[1])
        for part in tiles.parts(out_LBD):
            own_SB, elsewhere_SB = _of_tile(own_LB, part, weight_VD, tiles)
            rows_SBD = torch.nn.functional.embedding(own_SB, weight_VD)
            out_LBD[part] = tiles.summed(rows_SBD.masked_fill_(elsewhere_SB.unsqueeze(2), 0.0))
        ctx.own, ctx.weight, ctx.tiles = own_LB, weight_VD, tiles
        return out_LBD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        (grad_LBD,), weight_VD, tiles = gradients, ctx.weight, ctx.tiles
        sum_VD = torch.zeros_like(weight_VD, dtype=torch.promote_types(weight_VD.dtype, torch.float32))
        for part in tiles.parts(grad_LBD):
            own_SB, elsewhere_SB = _of_tile(ctx.own, part, weight_VD, tiles)
            rows_SBD = tiles.gathered(grad_LBD[part]).to(sum_VD.dtype).masked_fill(elsewhere_SB.unsqueeze(2), 0.0)
            sum_VD.index_add_(0, own_SB.flatten(), rows_SBD.flatten(0, 1))
        return None, sum_VD.to(weight_VD.dtype), None, None


def _of_tile(own_LB: Tensor, part: slice, weight_VD: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """A tile's rows of this rank's table, 0 where they are another rank's, and where they are."""
    own_SB = tiles.across(own_LB, part).flatten(0, 1)
    elsewhere_SB = (own_SB < 0) | (own_SB >= weight_VD.shape[0])
    return own_SB.masked_fill(elsewhere_SB, 0), elsewhere_SB
