"""A temperature that config.json cannot state, put into the weights of the queries instead.

Logits are scaled by m squared in the rotated channels; a query scaled by as much there gives the same logits. Where
queries are normalised after their projection (Qwen3), the norm's weight takes the factor, as a factor before it
would be lost. Cost: one fp32 copy of one layer's fused projection. The product is rounded once, to the dtype it is
stored in: exact to rounding in fp32; in bf16 each folded weight moves by up to 2^-9 of itself.
"""

from __future__ import annotations

import dataclasses

import torch

from megatron_ultralong.convert.hf_config import served
from megatron_ultralong.convert.rules import Dimensions
from megatron_ultralong.convert.table import Table
from megatron_ultralong.model.description import Description

_NORM, _PROJECTION = "self_attention.q_layernorm.weight", "self_attention.linear_qkv."


@dataclasses.dataclass(frozen=True)
class QueryFold:
    """What the queries of an export are multiplied by.

    Attributes:
        factor: of the rotated channels; 1: nothing is folded.
        rotary_dim: channels of a head that are rotated, the first.
        normed: whether queries are normalised after the projection.
    """

    factor: float
    rotary_dim: int
    normed: bool

    @classmethod
    def of(cls, description: Description, table: Table) -> QueryFold:
        """The fold that the exported config.json of this checkpoint needs."""
        _, factor = served(description.hf_config, description.rope)
        normed = any(rule.megatron.endswith(_NORM) for rule, _ in table.pieces())
        return cls(factor=factor, rotary_dim=description.rope.rotary_dim(table.dimensions.H), normed=normed)

    def apply(self, name: str, tensor: torch.Tensor, dimensions: Dimensions) -> torch.Tensor:
        """A Megatron tensor of one layer with the factor in it, in fp32 where it holds queries; else as it is.

        Args:
            name: its key in the checkpoint.
            tensor: linear_qkv's weight or bias, [K (N/K + 2) H, ...], or the norm's weight, [H].
            dimensions: of the model.
        """
        if self.factor == 1.0 or (_NORM if self.normed else _PROJECTION) not in name or "layer_norm" in name:
            return tensor
        folded = tensor.to(torch.float32, copy=True)
        if self.normed:
            folded[: self.rotary_dim] *= self.factor
            return folded
        heads = folded.view(dimensions.K, -1, dimensions.H, *folded.shape[1:])  # N/K queries, a key, a value
        heads[:, :-2, : self.rotary_dim] *= self.factor
        return folded
