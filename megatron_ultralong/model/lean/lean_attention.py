"""Self-attention and its norm, a group of heads at a time, forward and backward.

Only what attention itself needs exists over all positions: one group's queries, keys, values and, in backward, their
gradients; the output of all heads, over which backward writes the queries' gradients; and the gradients of all keys
and values. Projections go tile by tile, all heads together where their results add up (output projection, input's
gradient), so that no sum is rounded in between. For each group the tiles are gathered anew: G times the bytes of one
gather, 2 D a position, beside attention's 2 S N H operations or more a position.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.context_parallel.activation_recomputation import Keep
from megatron_ultralong.context_parallel.head_groups import HeadGroups
from megatron_ultralong.model.lean.tensor_tiles import Tiles
from megatron_ultralong.model.norms import norm_gradients, norm_of
from megatron_ultralong.model.rotary import rotate, rotate_back
from megatron_ultralong.model.weight_gradients import WeightGradients


@dataclasses.dataclass
class _Heads:
    """Queries or keys of one group over all positions, [L, B, heads, H].

    Attributes:
        rotated: normed where the model norms, and rotated.
        projected: as projected, which backward of the norm needs; else None.
    """

    rotated: Tensor
    projected: Tensor | None

    @classmethod
    def empty(cls, shape: tuple[int, ...], like: Tensor, keep: bool) -> _Heads:
        """Room for them, as projected too with `keep`."""
        return cls(like.new_empty(shape), like.new_empty(shape) if keep else None)


@dataclasses.dataclass
class _Keys:
    """Keys and values of one group, or of the groups that share them."""

    heads: _Heads
    values: Tensor


class LeanAttention:
    """A layer's self-attention behind its norm, without the residual.

    House legend, and n, k: query and key-value heads of a group, G: groups. The output of attention is [G, L, B, n, H].

    Args:
        layer: megatron-core's, whose weights these are.
        heads: the groups.
        tiles: which tile goes where.
        table_LB1C: cos and sin of all L positions, of model.rotary.Rotary.
        layout: as RingCoreAttention takes it.
    """

    def __init__(self, layer: Any, heads: HeadGroups, tiles: Tiles, table_LB1C: Tensor, layout: Any) -> None:
        attention = layer.self_attention
        self.norm: torch.nn.RMSNorm = layer.input_layernorm
        self.weight: Tensor = attention.linear_qkv.weight
        self.bias: Tensor | None = attention.linear_qkv.bias
        self.out: Tensor = attention.linear_proj.weight
        self.q_norm, self.k_norm = norm_of(attention.q_layernorm), norm_of(attention.k_layernorm)
        self.core, self.size = attention.core_attention, attention.hidden_size_per_attention_head
        self.kv_heads: int = attention.num_query_groups_per_partition
        self.heads, self.tiles, self.table, self.layout = heads, tiles, table_LB1C, layout

    def forward(self, x_LBD: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output of attention, [G, L, B, n, H], and each group's log-sum-exp."""
        heads, L, B = self.heads, len(x_LBD) * self.tiles.ranks, x_LBD.shape[1]
        out_GLBNH = x_LBD.new_empty(heads.count, L, B, heads.queries, self.size)
        sums: list[Tensor] = []
        keys: _Keys | None = None
        for group in range(heads.count):
            queries, keys = self._project(x_LBD, group, keys if group % heads.sharing else None, False)
            results: list[tuple[Tensor, Tensor]] = []
            with Keep(results):
                out = self.core(queries.rotated, keys.heads.rotated, keys.values, packed_seq_params=self.layout)
            del queries
            out_GLBNH[group] = out.view(out_GLBNH[group].shape)
            sums.append(results[0][1])
            del out, results
        return out_GLBNH, sums

    def output(self, out_GLBNH: Tensor, part: slice) -> Tensor:
        """The output projection at this rank's positions of a tile: [T, B, D]."""
        return self.tiles.summed(self._out_tile(out_GLBNH, part) @ self.out.t())

    def output_backward(self, out_GLBNH: Tensor, part: slice, grad_TBD: Tensor, gradients: WeightGradients) -> None:
        """Add a tile's gradient of the output projection's weight."""
        gradients.add_product(self.out, self._out_tile(out_GLBNH, part), self.tiles.gathered(grad_TBD))

    def backward(
        self, x_LBD: Tensor, grad_LBD: Tensor, out_GLBNH: Tensor, sums: list[Tensor], gradients: WeightGradients
    ) -> Tensor:
        """From the gradient of the output projection's result to those of queries, keys and values as projected.

        Returns:
            [L, B, K, 2, H], of all keys and values. Those of queries are written over `out_GLBNH`.
        """
        heads, L, B = self.heads, len(x_LBD) * self.tiles.ranks, x_LBD.shape[1]
        d_kv_LBK2H: Tensor | None = None
        for unit in range(heads.count // heads.sharing):
            keys: _Keys | None = None
            d_keys: tuple[Tensor, ...] = ()
            for group in range(unit * heads.sharing, (unit + 1) * heads.sharing):
                queries, keys = self._project(x_LBD, group, keys, True)
                known = queries.rotated, keys.heads.rotated, keys.values, out_GLBNH[group], sums[group]
                d_q, *found = self.core.differentiate(self._out_gradient(grad_LBD, group), *known, self.layout)
                del known
                self._rotated_back(d_q, queries, self.q_norm, out_GLBNH[group], gradients)
                del d_q, queries
                d_keys = _added(d_keys, found)
                del found
            assert keys is not None
            if d_kv_LBK2H is None:  # after the first heads' attention, which may be all
                d_kv_LBK2H = x_LBD.new_empty(L, B, self.kv_heads, 2, self.size)
            into_LBK2H = d_kv_LBK2H[:, :, unit * heads.keys : (unit + 1) * heads.keys]
            self._rotated_back(d_keys[0], keys.heads, self.k_norm, into_LBK2H[:, :, :, 0], gradients)
            into_LBK2H[:, :, :, 1] = d_keys[1]
            del keys, d_keys
        assert d_kv_LBK2H is not None
        return d_kv_LBK2H

    def input_backward(
        self, x_LBD: Tensor, grad_LBD: Tensor, d_q_GLBNH: Tensor, d_kv_LBK2H: Tensor, gradients: WeightGradients
    ) -> None:
        """Add the input's gradient to `grad_LBD`, by what `backward` found: all heads at once, tile by tile."""
        for part in self.tiles.parts(x_LBD):
            tile_SBD = self.tiles.gathered(self.norm(x_LBD[part]))
            d_q = self._out_tile(d_q_GLBNH, part).unflatten(2, (self.kv_heads, -1, self.size))
            d_kv = self.tiles.across(d_kv_LBK2H, part).flatten(0, 1)
            d_mixed_SBF = torch.cat((d_q, d_kv), dim=3).flatten(2)
            del d_q, d_kv
            gradients.add_product(self.weight, tile_SBD, d_mixed_SBF)
            if self.bias is not None:
                gradients.add(self.bias, d_mixed_SBF.sum((0, 1)))
            d_normed_TBD = self.tiles.summed(d_mixed_SBF @ self.weight)
            d_x_TBD, d_norm = norm_gradients(self.norm, x_LBD[part], d_normed_TBD)
            gradients.add(self.norm.weight, d_norm)
            grad_LBD[part].add_(d_x_TBD)

    def _project(self, x_LBD: Tensor, group: int, keys: _Keys | None, keep: bool) -> tuple[_Heads, _Keys]:
        """A group's queries, and its keys and values unless they are there already.

        `keep`: also as projected, where they are normed.
        """
        heads, wanted, positions = self.heads, keys is None, (len(x_LBD) * self.tiles.ranks, x_LBD.shape[1])
        queries = _Heads.empty((*positions, heads.queries, self.size), x_LBD, keep and self.q_norm is not None)
        if keys is None:
            shape = *positions, heads.keys, self.size
            keys = _Keys(_Heads.empty(shape, x_LBD, keep and self.k_norm is not None), x_LBD.new_empty(shape))
        for part in self.tiles.parts(x_LBD):
            tile_SBD = self.tiles.gathered(self.norm(x_LBD[part]))
            q, *kv = self._projected(tile_SBD, group, wanted)
            self._fill(queries, q, self.q_norm, part)
            if kv:
                self._fill(keys.heads, kv[0], self.k_norm, part)
                self.tiles.across(keys.values, part).copy_(self.tiles.shared(kv[1]))
        return queries, keys

    def _projected(self, x_SBD: Tensor, group: int, with_keys: bool) -> tuple[Tensor, ...]:
        """Queries [S, B, n, H] and, if asked for, keys and values [S, B, k, H] of a tile.

        The weight's rows are, for each key-value head, its queries', then its key's, then its value's.
        """
        heads, each = self.heads, self.weight.shape[0] // self.size // self.kv_heads
        first = group // heads.sharing * heads.keys * each
        if heads.sharing == 1:
            mixed = self._linear(x_SBD, first, heads.keys * each).unflatten(2, (heads.keys, each))
            q, k, v = mixed.split((each - 2, 1, 1), dim=3)
            return q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3)
        q = self._linear(x_SBD, first + group % heads.sharing * heads.queries, heads.queries)
        return (q, *self._linear(x_SBD, first + each - 2, 2).split(1, dim=2)) if with_keys else (q,)

    def _linear(self, x_SBD: Tensor, first: int, count: int) -> Tensor:
        """The projection to `count` heads' channels from head `first` of the weight's rows on: [S, B, count, H]."""
        rows = slice(first * self.size, (first + count) * self.size)
        out = x_SBD @ self.weight[rows].t()
        if self.bias is not None:
            out += self.bias[rows]
        return out.unflatten(2, (count, self.size))

    def _fill(self, heads: _Heads, x_SBNH: Tensor, norm: torch.nn.RMSNorm | None, part: slice) -> None:
        """Put a tile of queries or keys in its place, normed and rotated."""
        if heads.projected is not None:
            self.tiles.across(heads.projected, part).copy_(self.tiles.shared(x_SBNH))
        if norm is not None:
            x_SBNH = norm(x_SBNH)
        rotated = rotate(x_SBNH, self.tiles.across(self.table, part).flatten(0, 1))
        self.tiles.across(heads.rotated, part).copy_(self.tiles.shared(rotated))

    def _out_tile(self, out_GLBNH: Tensor, part: slice) -> Tensor:
        """All heads' outputs of attention in a tile: [S, B, N H]."""
        return torch.cat([self.tiles.across(out, part).flatten(0, 1) for out in out_GLBNH], dim=2).flatten(2)

    def _out_gradient(self, grad_LBD: Tensor, group: int) -> Tensor:
        """The gradient of a group's output of attention, [L, B, n, H], from the projection's."""
        width = self.heads.queries * self.size
        columns = self.out[:, group * width : (group + 1) * width]
        L, B = len(grad_LBD) * self.tiles.ranks, grad_LBD.shape[1]
        d_out_LBF = grad_LBD.new_empty(L, B, width)
        for part in self.tiles.parts(grad_LBD):
            tile = self.tiles.gathered(grad_LBD[part]) @ columns
            self.tiles.across(d_out_LBF, part).copy_(self.tiles.shared(tile))
        return d_out_LBF.unflatten(2, (-1, self.size))

    def _rotated_back(
        self, grad_LBNH: Tensor, heads: _Heads, norm: torch.nn.RMSNorm | None, into: Tensor, gradients: WeightGradients
    ) -> None:
        """Write the gradient of projected queries or keys, from that of the rotated ones, a tile's size at a time."""
        step = self.tiles.rows * self.tiles.ranks
        for start in range(0, len(grad_LBNH), step):
            rows = slice(start, start + step)
            grad = rotate_back(grad_LBNH[rows].to(into.dtype), self.table[rows])
            if norm is not None and heads.projected is not None:
                grad, d_weight = norm_gradients(norm, heads.projected[rows], grad)
                gradients.add(norm.weight, d_weight)
            into[rows] = grad


def _added(total: tuple[Tensor, ...], more: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of keys and values that several groups share, added in fp32 (fp64); the first as they are."""
    if not total:
        return tuple(more)
    wide = torch.promote_types(total[0].dtype, torch.float32)
    return tuple(x.to(wide).add_(y) for x, y in zip(total, more, strict=True))
