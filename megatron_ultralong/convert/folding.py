"""A temperature that config.json cannot state, put into the weights of the queries instead.

Logits are scaled by m squared in the rotated channels; a query scaled by as much there gives the same logits. Where
queries are normalised after their projection (Qwen3), the norm's weight takes the factor, as a factor before it
would be lost. Cost: one number a row. The product is rounded once, to the dtype it is stored in: exact to rounding
in fp32; in bf16 each folded weight moves by up to 2^-9 of itself.
"""

from __future__ import annotations

import dataclasses

import torch

from megatron_ultralong.checkpoint.description import Description
from megatron_ultralong.convert.hf_config import served
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.families.rules import Dimensions, Rule

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

    def scale(self, rule: Rule, part: int, dimensions: Dimensions) -> torch.Tensor | None:
        """Factors of the rows of a rule's Hugging Face tensor, fp32 [rows]; None: it holds no queries to scale.

        Args:
            rule: what the tensor belongs to.
            part: which of the rule's tensors.
            dimensions: of the model.
        """
        wanted = rule.megatron.endswith(_NORM) if self.normed else _PROJECTION in rule.megatron
        if self.factor == 1.0 or not wanted or "layer_norm" in rule.megatron or part > 0:
            return None
        heads = 1 if self.normed else dimensions.N  # queries are the first rows also where q, k and v are one tensor
        factors = torch.ones(rule.shapes(dimensions)[0][0])
        factors[: heads * dimensions.H].view(heads, dimensions.H)[:, : self.rotary_dim] = self.factor
        return factors

    def fused(self, rule: Rule, dimensions: Dimensions) -> torch.Tensor | None:
        """Factors of the rows of a rule's megatron-core tensor, fp32 [rows]; None: it holds no queries to scale."""
        scales = [self.scale(rule, number, dimensions) for number in range(len(rule.hf))]
        if all(scale is None for scale in scales):
            return None
        shapes = rule.shapes(dimensions)
        parts = [torch.ones(shape[0]) if scale is None else scale for scale, shape in zip(scales, shapes, strict=True)]
        return rule.merge(parts, dimensions)
