"""What megatron-core's SelfAttention calls for its core attention, and the layout it is told.

Two backends with one interface: PyTorch's own kernels in our ring, with heads exchanged inside it where
parallel.ulysses asks for it ("torch"), and Transformer Engine ("te"). Both get sequence-first tensors in the
order in which this rank holds the sequence; rotary positions are applied before, by position, so neither depends on
the layout.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.context_parallel.cached_attention import Grid, cached_attention
from megatron_ultralong.context_parallel.kv_cache import CachedStretch
from megatron_ultralong.context_parallel.ring import ring_attention, ring_gradients
from megatron_ultralong.context_parallel.ulysses import ulysses_attention, ulysses_gradients
from megatron_ultralong.engine import mcore


@dataclasses.dataclass
class SequenceLayout(mcore.PackedSeqParams):
    """How the batch's sequence is laid out; travels through GPTModel as its `packed_seq_params`.

    Attributes:
        position_ids: int64 [B, L], the positions of this rank's tokens, for the rotary module.
        documents: [documents + 1] bounds over the whole sequence for document masks, or None.
        cached: these are the next tokens of a sequence whose keys and values are cached; None: all of one.
    """

    qkv_format: str = "sbhd"
    position_ids: Tensor | None = None
    documents: tuple[int, ...] | None = None
    cached: CachedStretch | None = None


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
        self.heads_group = None
        self.ring_group = pg_collection.cp if config.context_parallel_size > 1 else None
        if config.hierarchical_context_parallel_sizes is not None:
            self.heads_group, self.ring_group = pg_collection.hcp
        several = config.context_parallel_size > 1
        self.grid = Grid(pg_collection.cp if several else None, self.heads_group, self.ring_group)
        self.softmax_scale = softmax_scale if softmax_scale is not None else config.softmax_scale
        self.layer = layer_number - 1

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
        if packed_seq_params is not None and packed_seq_params.cached is not None:
            return self._cached(query, key, value, packed_seq_params.cached)
        attend = ring_attention if self.heads_group is None else ulysses_attention
        out_BLNH = attend(*(x.transpose(0, 1) for x in (query, key, value)), **self._how(packed_seq_params))
        return out_BLNH.transpose(0, 1).reshape(query.shape[0], query.shape[1], -1)

    def differentiate(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        packed_seq_params: SequenceLayout | None,
    ) -> tuple[Tensor, ...]:
        """The gradients of query, key and value, by `forward`'s output and log-sum-exp, which need no graph.

        `grad` and `out` are [L, B, N, H]; `lse` is what `activation_recomputation.Keep` caught.
        """
        gradients: Callable[..., tuple[Tensor, ...]] = ring_gradients
        if self.heads_group is not None:
            gradients = ulysses_gradients
        tensors = (x.transpose(0, 1) for x in (grad, query, key, value, out))
        found = gradients(*tensors, lse, **self._how(packed_seq_params))
        return tuple(x.transpose(0, 1) for x in found)

    def _how(self, layout: SequenceLayout | None) -> dict[str, Any]:
        """Keywords of the attention functions: groups, documents and scale."""
        groups: dict[str, Any] = {"group": self.ring_group}
        if self.heads_group is not None:
            groups = {"heads_group": self.heads_group, "ring_group": self.ring_group}
        documents = layout.documents if layout is not None else None
        return {**groups, "cu_seqlens": documents, "softmax_scale": self.softmax_scale}

    def _cached(self, query: Tensor, key: Tensor, value: Tensor, cached: CachedStretch) -> Tensor:
        out_BLNH = cached_attention(
            *(x.transpose(0, 1) for x in (query, key, value)),
            layer=self.layer,
            cached=cached,
            grid=self.grid,
            scale=query.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale,
        )
        return out_BLNH.reshape(1, query.shape[0], -1).transpose(0, 1)


class TECoreAttention(torch.nn.Module):
    """megatron-core's TEDotProductAttention, told of documents in Transformer Engine's own form (backend "te").

    megatron-core's own path for packed documents would apply rotary positions by document and rank; ours are
    applied by position already, so only this call sees Transformer Engine's "thd" form.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.attention = mcore.TEDotProductAttention(**arguments)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: mcore.AttnMaskType,
        attention_bias: Tensor | None = None,
        packed_seq_params: SequenceLayout | None = None,
    ) -> Tensor:
        """query [L, B, N, H], key and value [L, B, K, H] -> [L, B, N H]; B is 1 where documents are masked."""
        documents = packed_seq_params.documents if packed_seq_params is not None else None
        packed = None
        if documents is not None:
            query, key, value = (x.squeeze(1) for x in (query, key, value))
            packed = packed_documents(documents, query.device)
        out = self.attention(
            query,
            key,
            value,
            attention_mask,
            attn_mask_type=attn_mask_type,
            attention_bias=attention_bias,
            packed_seq_params=packed,
        )
        return out if documents is None else out.reshape(query.shape[0], 1, -1)


@functools.lru_cache(maxsize=8)  # a step's microbatches; every layer asks again
def packed_documents(documents: tuple[int, ...], device: torch.device) -> mcore.PackedSeqParams:
    """Transformer Engine's account of the documents: bounds and longest length over the whole sequence."""
    bounds = torch.tensor(documents, dtype=torch.int32, device=device)
    longest = max(stop - start for start, stop in itertools.pairwise(documents))
    return mcore.PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        cu_seqlens_q_padded=bounds,
        cu_seqlens_kv_padded=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
