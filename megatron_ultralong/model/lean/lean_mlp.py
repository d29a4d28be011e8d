"""The MLP and its norm over one tile of the sequence, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.engine import mcore
from megatron_ultralong.model.lean.tensor_tiles import Tiles
from megatron_ultralong.model.norms import norm_gradients
from megatron_ultralong.model.weight_gradients import WeightGradients


class LeanMlp:
    """A layer's gated MLP behind its norm, without the residual.

    Args:
        layer: megatron-core's, whose weights these are.
        tiles: which tile goes where.
    """

    def __init__(self, layer: Any, tiles: Tiles) -> None:
        self.norm: torch.nn.RMSNorm = layer.pre_mlp_layernorm
        self.up: Tensor = layer.mlp.linear_fc1.weight
        self.down: Tensor = layer.mlp.linear_fc2.weight
        self.fused: bool = layer.config.bias_activation_fusion
        self.tiles = tiles

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        wide_SBF = self._activated(self.tiles.gathered(self.norm(x_TBD)) @ self.up.t())
        return self.tiles.summed(wide_SBF @ self.down.t())

    def backward(self, x_TBD: Tensor, grad_TBD: Tensor, gradients: WeightGradients) -> Tensor:
        """The input's gradient, from the input and the output's gradient; the product of `down` is not made again."""
        normed_SBD = self.tiles.gathered(self.norm(x_TBD))
        both_SBF = (normed_SBD @ self.up.t()).requires_grad_()
        with torch.enable_grad():
            wide_SBF = self._activated(both_SBF)
        grad_SBD = self.tiles.gathered(grad_TBD)
        gradients.add_product(self.down, wide_SBF.detach(), grad_SBD)
        (d_both_SBF,) = torch.autograd.grad(wide_SBF, both_SBF, grad_SBD @ self.down)
        del both_SBF, wide_SBF, grad_SBD
        gradients.add_product(self.up, normed_SBD, d_both_SBF)
        del normed_SBD
        d_normed_TBD = self.tiles.summed(d_both_SBF @ self.up)
        d_x_TBD, d_norm = norm_gradients(self.norm, x_TBD, d_normed_TBD)
        gradients.add(self.norm.weight, d_norm)
        return d_x_TBD

    def _activated(self, both_SBF: Tensor) -> Tensor:
        """silu(gate) x up, as megatron-core's MLP computes it."""
        if self.fused:
            out: Tensor = mcore.fused_bias_swiglu.bias_swiglu_impl(both_SBF, None)
            return out
        gate_SBF, up_SBF = both_SBF.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate_SBF) * up_SBF
