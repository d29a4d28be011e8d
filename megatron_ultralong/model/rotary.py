"""The rotary embedding that GPTModel calls: angles for this rank's positions only.

megatron-core's own module builds the table of the whole sequence on every rank before it slices it (2.1 GB at
4M tokens); here the table has a row for each position that this rank holds. Angles are position x frequency in
fp32, as every serving stack computes them, or in fp64 and reduced to one turn before they are rounded to fp32.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from megatron_ultralong.context_parallel.core_attention import SequenceLayout
from megatron_ultralong.model.rope import RopeScaling


class Rotary(torch.nn.Module):
    """Has the interface of megatron-core's RotaryEmbedding, as far as GPTModel calls it.

    Args:
        rope: the scaling; its attention factor is applied by megatron-core through
            `TransformerConfig.yarn_rotary_scaling_factor` and kin (see model/build.py).
        rotary_dim: dimensions of a head that are rotated.
        angles: precision of position x frequency.
    """

    def __init__(self, rope: RopeScaling, rotary_dim: int, angles: Literal["fp32", "fp64"] = "fp32") -> None:
        super().__init__()
        dtype = torch.float64 if angles == "fp64" else torch.float32
        self.frequencies = torch.from_numpy(rope.inverse_frequencies(rotary_dim)).to(dtype)

    def get_rotary_seq_len(
        self, inference_context: Any, decoder: Any, decoder_input: Any, config: Any, layout: SequenceLayout
    ) -> Tensor:
        """What GPTModel hands to `forward`: this rank's positions, int64 [B, L]."""
        del inference_context, decoder, decoder_input, config
        assert layout.position_ids is not None
        return layout.position_ids

    def forward(self, position_ids_BL: Tensor, packed_seq: bool = False, cp_group: Any = None) -> Tensor:
        """Angles in fp32, [L, B, 1, rotary_dim], the half-dimension table twice over as megatron-core wants it."""
        del packed_seq, cp_group
        frequencies = self.frequencies.to(position_ids_BL.device)
        angles_LBP = position_ids_BL.t().unsqueeze(-1).to(frequencies.dtype) * frequencies
        if frequencies.dtype == torch.float64:
            angles_LBP = angles_LBP.remainder(2 * math.pi).float()
        return torch.cat((angles_LBP, angles_LBP), dim=-1).unsqueeze(2)
