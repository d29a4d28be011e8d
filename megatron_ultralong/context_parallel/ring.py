"""Causal ring attention over a zig-zag layout: exact, streaming, documents of any length.

Each rank keeps its queries and passes keys and values on around the ring, receiving the next share while it
computes with the one at hand. Partial outputs are folded at once into one fp32 accumulator, so a call holds two
KV shares and one fp32 output whatever the ring's size. Backward sends KV around again, with fp32 dKV that comes
home after a full turn.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.context_parallel import kept, kernels, merge, zigzag


@dataclasses.dataclass(frozen=True)
class _Ring:
    """Where this rank stands, and the geometry of the whole sequence."""

    group: dist.ProcessGroup | None
    rank: int
    size: int
    sequence_length: int
    cu_seqlens: tuple[int, ...] | None

    def blocks(self, step: int) -> list[zigzag.Block]:
        """This rank's rectangles against the share it holds at `step`, which started at rank - step."""
        source = (self.rank - step) % self.size
        return zigzag.blocks(self.sequence_length, self.rank, source, self.size, self.cu_seqlens)

    def start(self, outgoing: Tensor) -> _Exchange:
        """Begin to send `outgoing` to the next rank and to receive its like from the one before."""
        assert self.group is not None
        incoming = torch.empty_like(outgoing)
        following = dist.get_global_rank(self.group, (self.rank + 1) % self.size)
        preceding = dist.get_global_rank(self.group, (self.rank - 1) % self.size)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, outgoing, following, self.group),
                dist.P2POp(dist.irecv, incoming, preceding, self.group),
            ]
        )
        return _Exchange(works, outgoing, incoming)


@dataclasses.dataclass(frozen=True)
class _Exchange:
    """A send and a receive under way; `outgoing` is held so that its memory outlives the send."""

    works: list[Any]
    outgoing: Tensor
    incoming: Tensor

    def finish(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.incoming


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, ring: _Ring, scale: float) -> Tensor:
        out, lse_BLN = kept.once(lambda: _attend(q_BLNH, k_BLKH, v_BLKH, ring, scale))
        ctx.save_for_backward(q_BLNH, k_BLKH, v_BLKH, out, lse_BLN)
        ctx.ring, ctx.scale = ring, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_BLNH, k_BLKH, v_BLKH, out_BLNH, lse_BLN = ctx.saved_tensors
        grad_BLNH, ring, scale = gradients[0].contiguous(), ctx.ring, ctx.scale
        dq = torch.zeros(q_BLNH.shape, dtype=lse_BLN.dtype, device=q_BLNH.device)
        kv = torch.stack((k_BLKH, v_BLKH))
        kv_exchange = dkv_exchange = None
        for step in range(ring.size):
            if step + 1 < ring.size:
                kv_exchange = ring.start(kv)
            dkv = torch.zeros(kv.shape, dtype=lse_BLN.dtype, device=kv.device)
            for block in ring.blocks(step):
                rows, keys = slice(block.q_start, block.q_stop), slice(block.k_start, block.k_stop)
                block_dq, block_dk, block_dv = kernels.backward(
                    grad_BLNH[:, rows],
                    q_BLNH[:, rows],
                    kv[0][:, keys],
                    kv[1][:, keys],
                    out_BLNH[:, rows],
                    lse_BLN[:, rows],
                    block.causal,
                    scale,
                )
                dq[:, rows] += block_dq
                dkv[0][:, keys] += block_dk
                dkv[1][:, keys] += block_dv
            if dkv_exchange is not None:
                dkv += dkv_exchange.finish()
            if ring.size > 1:
                dkv_exchange = ring.start(dkv)
            if kv_exchange is not None:
                kv, kv_exchange = kv_exchange.finish(), None
        if dkv_exchange is not None:
            dkv = dkv_exchange.finish()
        return dq.to(q_BLNH.dtype), dkv[0].to(k_BLKH.dtype), dkv[1].to(v_BLKH.dtype), None, None


def _attend(q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, ring: _Ring, scale: float) -> tuple[Tensor, Tensor]:
    """Output in q's dtype and log-sum-exp, over the whole ring."""
    wide = torch.float64 if q_BLNH.dtype == torch.float64 else torch.float32
    out_BLNH = torch.zeros(q_BLNH.shape, dtype=wide, device=q_BLNH.device)
    lse_BLN = torch.full(q_BLNH.shape[:3], float("-inf"), dtype=wide, device=q_BLNH.device)
    kv = torch.stack((k_BLKH, v_BLKH))
    for step in range(ring.size):
        exchange = ring.start(kv) if step + 1 < ring.size else None
        for block in ring.blocks(step):
            rows, keys = slice(block.q_start, block.q_stop), slice(block.k_start, block.k_stop)
            block_out, block_lse = kernels.forward(q_BLNH[:, rows], kv[0][:, keys], kv[1][:, keys], block.causal, scale)
            merge.fold(out_BLNH[:, rows], lse_BLN[:, rows], block_out, block_lse)
        if exchange is not None:
            kv = exchange.finish()
    return out_BLNH.to(q_BLNH.dtype), lse_BLN


def ring_attention(
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    *,
    group: dist.ProcessGroup | None,
    cu_seqlens: tuple[int, ...] | None = None,
    softmax_scale: float | None = None,
) -> Tensor:
    """Causal attention over a sequence of S = L cp tokens whose zig-zag shares the ranks of `group` hold.

    Args:
        q_BLNH: this rank's queries, [B, L, N, H].
        k_BLKH: this rank's keys, [B, L, K, H]; N is a multiple of K.
        v_BLKH: this rank's values, [B, L, K, H].
        group: the context-parallel group; None for a sequence that is here whole.
        cu_seqlens: [documents + 1] bounds over the whole sequence, 0 first and S last: tokens attend only
            within their document. None: to everything before them.
        softmax_scale: factor on the logits; None: 1 / sqrt(H).

    Returns:
        [B, L, N, H] in q's dtype.
    """
    size = dist.get_world_size(group) if group is not None else 1
    rank = dist.get_rank(group) if group is not None else 0
    ring = _Ring(group, rank, size, q_BLNH.shape[1] * size, cu_seqlens)
    scale = softmax_scale if softmax_scale is not None else q_BLNH.shape[-1] ** -0.5
    return _RingAttention.apply(q_BLNH, k_BLKH, v_BLKH, ring, scale)
