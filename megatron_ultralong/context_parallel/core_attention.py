"""What megatron-core's SelfAttention calls for its core attention, and the layout it is told."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.context_parallel.ring import ring_attention
from megatron_ultralong.engine import mcore


@dataclasses.dataclass
class SequenceLayout(mcore.PackedSeqParams):
    """How the batch's sequence is laid out; travels through GPTModel as its `packed_seq_params`.

    Attributes:
        position_ids: int64 [B, L], the positions of this rank's tokens, for the rotary module.
        documents: [documents + 1] bounds over the whole sequence for document masks, or None.
    """

    qkv_format: str = "sbhd"
    position_ids: Tensor | None = None
    documents: tuple[int, ...] | None = None


class RingCoreAttention(torch.nn.Module):
    """Core attention over the context-parallel group, with PyTorch's own kernels (backend "torch")."""

    def __init__(
        self,
        config: mcore.TransformerConfig,
        layer_number: int,
        attn_mask_type: mcore.AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__()
        self.group = pg_collection.cp if config.context_parallel_size > 1 else None
        self.softmax_scale = softmax_scale if softmax_scale is not None else config.softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: mcore.AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: SequenceLayout | None = None,
    ) -> Tensor:
        """query [L, B, N, H], key and value [L, B, K, H] -> [L, B, N H]."""
        out_BLNH = ring_attention(
            query.transpose(0, 1),
            key.transpose(0, 1),
            value.transpose(0, 1),
            group=self.group,
            cu_seqlens=packed_seq_params.documents if packed_seq_params is not None else None,
            softmax_scale=self.softmax_scale,
        )
        return out_BLNH.transpose(0, 1).reshape(query.shape[0], query.shape[1], -1)
