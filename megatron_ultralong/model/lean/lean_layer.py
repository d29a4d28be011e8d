"""A transformer layer that keeps its input and little else, and computes its attention by groups of heads.

One autograd function a layer. Forward holds the input, attention's output and the layer's output; backward the
input, attention's output and the gradient, which is changed in place from the output's to the input's. All that is
wider or in fp32 (norms, projections, MLP, gathered positions) exists for one tile of the sequence, and q, k, v and
their gradients for one group of heads. What lies between attention and the MLP is never whole: a tile of it is made
where the MLP needs it.

The same products and sums as megatron-core's layer: forward to the byte; gradients of weights are added up over tiles
in fp32. Beside the full recomputation it projects queries, keys and values once more, in backward (2 D (N + 2 K) H
operations a position), and leaves out the MLP's second product (2 F D), which no gradient needs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ultralong.context_parallel.head_groups import HeadGroups, tile_rows
from megatron_ultralong.engine import mcore
from megatron_ultralong.model.lean.lean_attention import LeanAttention
from megatron_ultralong.model.lean.lean_embedding import tile_embedding
from megatron_ultralong.model.lean.lean_mlp import LeanMlp
from megatron_ultralong.model.lean.tensor_tiles import Tiles
from megatron_ultralong.model.offload import Kept
from megatron_ultralong.model.weight_gradients import WeightGradients


@dataclasses.dataclass(frozen=True)
class LeanOptions:
    """How lean layers work.

    Attributes:
        head_groups: groups of a rank's heads.
        rows: positions of this rank in a tile; 0: `head_groups.TILE` over the tensor-parallel group.
        keep_attention: attention's output and log-sum-exp are kept for backward beside the layer's input.
    """

    head_groups: int
    rows: int
    keep_attention: bool


class LeanLayer(mcore.TransformerLayer):
    """megatron-core's layer with its modules, weights and checkpoints, computed as this file says.

    With cached keys and values it is megatron-core's own.
    """

    options: LeanOptions  # set as the model is built

    def forward(
        self,
        hidden_states: Tensor,
        *arguments: Any,
        rotary_pos_emb: Any = None,
        packed_seq_params: Any = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        """As of mcore.TransformerLayer, for self-attention without dropout."""
        if getattr(packed_seq_params, "cached", None) is not None or rotary_pos_emb is None:
            rest |= {"rotary_pos_emb": rotary_pos_emb, "packed_seq_params": packed_seq_params}
            return super().forward(hidden_states, *arguments, **rest)  # type: ignore[no-any-return]
        for module in self.holders():
            for hook in module._forward_pre_hooks.values():  # DDP's: the weight may still be on its way
                hook(module, ())
        weights = list(self.parameters())
        out: Tensor = _Layer.apply(hidden_states, self, rotary_pos_emb, packed_seq_params, *weights)
        return out, None

    def holders(self) -> list[torch.nn.Module]:
        """The modules whose weights this layer uses in their stead."""
        return [each for each in self.modules() if next(each.parameters(recurse=False), None) is not None]

    def parts(self, table_LB1C: Tensor, layout: Any) -> tuple[Tiles, LeanAttention, LeanMlp]:
        """The layer's tiles, attention and MLP."""
        tiles = tiles_of(self.config, self.options)
        attention = self.self_attention
        heads = HeadGroups.of(
            attention.num_attention_heads_per_partition,
            attention.num_query_groups_per_partition,
            self.options.head_groups,
        )
        return tiles, LeanAttention(self, heads, tiles, table_LB1C, layout), LeanMlp(self, tiles)


def tiles_of(config: mcore.TransformerConfig, options: LeanOptions) -> Tiles:
    """How this rank's positions are cut."""
    group = mcore.parallel_state.get_tensor_model_parallel_group()
    split = config.sequence_parallel and group.size() > 1
    return Tiles(tile_rows(options.rows, group.size() if split else 1), group, split)


def make_lean(model: Any, options: LeanOptions) -> None:
    """Tell a model of lean layers how they work, and let its embedding go by tiles where positions are split."""
    for layer in model.decoder.layers:
        layer.options = options
    tiles = tiles_of(model.config, options)
    if tiles.split and model.pre_process:
        tile_embedding(model.embedding.word_embeddings, tiles)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_LBD: Tensor, layer: LeanLayer, table_LB1C: Tensor, layout: Any, *weights: Tensor) -> Tensor:
        tiles, attention, mlp = layer.parts(table_LB1C, layout)
        out_GLBNH, sums = attention.forward(x_LBD)
        y_LBD = torch.empty_like(x_LBD)
        for part in tiles.parts(x_LBD):
            middle_TBD = attention.output(out_GLBNH, part) + x_LBD[part]
            torch.add(middle_TBD, mlp.forward(middle_TBD), out=y_LBD[part])
        kept = (x_LBD, out_GLBNH, torch.stack(sums)) if layer.options.keep_attention else (x_LBD,)
        ctx.on_host = Kept.on_host(*kept)
        ctx.save_for_backward(*(kept if ctx.on_host is None else ()))
        ctx.layer, ctx.table, ctx.layout = layer, table_LB1C, layout
        return y_LBD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x_LBD, *kept = ctx.saved_tensors if ctx.on_host is None else ctx.on_host.get()
        grad_LBD = gradients[0].contiguous()  # changed in place: nothing else has it
        tiles, attention, mlp = ctx.layer.parts(ctx.table, ctx.layout)
        out_GLBNH, sums = (kept[0], list(kept[1])) if kept else attention.forward(x_LBD)
        found = WeightGradients(ctx.layer.config.gradient_accumulation_fusion)
        for part in tiles.parts(x_LBD):
            middle_TBD = attention.output(out_GLBNH, part) + x_LBD[part]
            grad_LBD[part].add_(mlp.backward(middle_TBD, grad_LBD[part], found))
            attention.output_backward(out_GLBNH, part, grad_LBD[part], found)
        d_kv_LBK2H = attention.backward(x_LBD, grad_LBD, out_GLBNH, sums, found)
        if ctx.on_host is not None:
            ctx.on_host.fetch_before()  # the layer below's, now that the highest moment has passed
        attention.input_backward(x_LBD, grad_LBD, out_GLBNH, d_kv_LBK2H, found)
        return grad_LBD, None, None, None, *(found.of(weight) for weight in ctx.layer.parameters())
