"""All-to-all attention (DeepSpeed-Ulysses), alone or around a ring: context parallel = ulysses x ring.

The inner group's ranks trade: each gives away most of its heads and receives, for the heads it keeps, the whole
stretch of sequence that the inner group holds. What it then has is the zig-zag share of the outer ring: rank
c = o u + i of the cp-degree cut holds chunks c and 2 cp - 1 - c, so the inner group o holds chunks o u .. o u + u - 1
and their mirror images, which in order are chunks o and 2 r - 1 - o of the coarser cut for r = cp / u ranks. Data
therefore lies the same for every split of cp, documents may have any length, and a run can change the split.

One all-to-all before attention (queries, keys and values together) and one after it; backward has the same two.
A rank hands over (N + 2 max(K, u)) H values a token of its own before attention and N H after it, of which 1 / u stays
with it; beside the ring's memory a call holds one such buffer to send and one to receive. With more ranks than
key-value heads each head goes to u / K ranks, and its gradients are added in fp32.

House legend, and u: ranks of the inner group, n = N / u and k = max(K / u, 1): the heads that a rank attends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.context_parallel.requirements import ulysses_problem
from megatron_ultralong.context_parallel.ring import check, ring_attention, ring_gradients
from megatron_ultralong.context_parallel.ring_exchange import LostPeerError
from megatron_ultralong.errors import UserError


def ulysses_attention(
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    *,
    heads_group: dist.ProcessGroup,
    ring_group: dist.ProcessGroup | None,
    cu_seqlens: Sequence[int] | Tensor | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
) -> Tensor:
    """Attention over a sequence whose cp-degree zig-zag shares the ranks of both groups hold.

    Args:
        q_BLNH: this rank's queries, [B, L, N, H].
        k_BLKH: this rank's keys, [B, L, K, H]; N is a multiple of K.
        v_BLKH: this rank's values, [B, L, K, H].
        heads_group: the inner group of u neighbouring context-parallel ranks, in their order.
        ring_group: the outer group of the cp / u ranks with this rank's place in theirs; None: there is no other.
        cu_seqlens: as of `ring_attention`, and so are the rest.
        causal: tokens attend to what precedes them, and to themselves.
        softmax_scale: factor on the logits; None: 1 / sqrt(H).

    Returns:
        [B, L, N, H] in q's dtype.

    Raises:
        UserError: heads that do not divide over the inner group, and as `ring_attention`.
        LostPeerError: a rank ended, or did not answer within its group's timeout.
    """
    _check(q_BLNH, k_BLKH, v_BLKH, heads_group)
    q, k, v = _ToHeads.apply(q_BLNH, k_BLKH, v_BLKH, heads_group)
    out = ring_attention(q, k, v, group=ring_group, cu_seqlens=cu_seqlens, causal=causal, softmax_scale=softmax_scale)
    return _ToSequence.apply(out, heads_group)


def ulysses_gradients(
    grad_BLNH: Tensor,
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    out_BLNH: Tensor,
    lse_BSN: Tensor,
    *,
    heads_group: dist.ProcessGroup,
    ring_group: dist.ProcessGroup | None,
    cu_seqlens: Sequence[int] | Tensor | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What backward of `ulysses_attention` computes, for one who kept its output and log-sum-exp.

    The output is exchanged once more, so that it need not be kept in both forms.

    Args:
        grad_BLNH: the output's gradient, `out_BLNH` the output.
        lse_BSN: [B, u L, n], of the heads and the stretch that this rank attends with, as
            `activation_recomputation.Keep` catches it. The rest, and errors, as of `ulysses_attention`.

    Returns:
        The gradients of q, k and v, in their dtype.
    """
    _check(q_BLNH, k_BLKH, v_BLKH, heads_group)
    size, copies = dist.get_world_size(heads_group), _copies(k_BLKH, heads_group)
    parts = [by_head(x, size) for x in (q_BLNH, k_BLKH, v_BLKH)]
    q, k, v = _exchange_to_heads(parts, heads_group)
    del parts
    grad, out = _exchange_to_heads([by_head(x, size) for x in (grad_BLNH, out_BLNH)], heads_group)
    found = ring_gradients(
        *(grad, q, k, v, out, lse_BSN),
        group=ring_group,
        cu_seqlens=cu_seqlens,
        causal=causal,
        softmax_scale=softmax_scale,
    )
    del grad, q, k, v, out
    return _gradients_in_order(found, copies, heads_group)


def _check(q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, heads_group: dist.ProcessGroup) -> None:
    check(q_BLNH, k_BLKH, v_BLKH, heads_group)
    size = dist.get_world_size(heads_group)
    problem = ulysses_problem(q_BLNH.shape[2], k_BLKH.shape[2], size)
    if problem is not None:
        raise UserError(f"parallel.ulysses is {size}, {problem}")


def _copies(k_BLKH: Tensor, group: dist.ProcessGroup) -> int:
    """Ranks that attend with the same key-value head."""
    return max(dist.get_world_size(group) // k_BLKH.shape[2], 1)


def _gradients_in_order(
    gradients: tuple[Tensor, ...], copies: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the exchanged queries, keys and values, back at the ranks whose positions they are of."""
    dq, dk, dv = _exchange_to_sequence(gradients, group)
    return heads_in_order(dq), heads_in_order(_add_copies(dk, copies)), heads_in_order(_add_copies(dv, copies))


class _ToHeads(torch.autograd.Function):
    """[B, L, N, H], [B, L, K, H] twice -> [B, u L, n, H], [B, u L, k, H] twice."""

    @staticmethod
    def forward(
        ctx: Any, q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, group: dist.ProcessGroup
    ) -> tuple[Tensor, ...]:
        size = dist.get_world_size(group)
        ctx.group, ctx.copies = group, _copies(k_BLKH, group)
        parts = [by_head(x, size) for x in (q_BLNH, k_BLKH, v_BLKH)]
        return _exchange_to_heads(parts, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients_in_order(gradients, ctx.copies, ctx.group), None


class _ToSequence(torch.autograd.Function):
    """[B, u L, n, H] -> [B, L, N, H]."""

    @staticmethod
    def forward(ctx: Any, out_BSNH: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        (parts,) = _exchange_to_sequence((out_BSNH,), group)
        return heads_in_order(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (grad,) = _exchange_to_heads([by_head(gradients[0], dist.get_world_size(ctx.group))], ctx.group)
        return grad, None


def _exchange_to_heads(parts: list[Tensor], group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """Send [u, B, L, heads, H] by its first dimension, and lay what comes along the sequence: [B, u L, heads, H]."""
    received = all_to_all(torch.cat(parts, dim=3), group)
    return tuple(_in_sequence(x) for x in received.split([x.shape[3] for x in parts], dim=3))


def _exchange_to_sequence(tensors: tuple[Tensor, ...], group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """Send each rank its share of [B, u L, heads, H]; what comes is [u, B, L, heads, H], by whose heads they are."""
    size = dist.get_world_size(group)
    received = all_to_all(torch.cat([_by_share(x, size) for x in tensors], dim=3), group)
    return received.split([x.shape[2] for x in tensors], dim=3)


def all_to_all(outgoing: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send [u, ...] by its first dimension; what comes is laid by who sent it."""
    incoming = torch.empty_like(outgoing)
    try:
        dist.all_to_all_single(incoming, outgoing, group=group)
    except RuntimeError as error:
        processes = ", ".join(str(process) for process in dist.get_process_group_ranks(group))
        raise LostPeerError(
            f"Process {dist.get_rank()} could not exchange heads with the others of processes {processes}: a process "
            f"ended, or did not answer within the timeout. Look for the first error of those processes. ({error})"
        ) from error
    return incoming


def by_head(x_BLNH: Tensor, size: int) -> Tensor:
    """[B, L, N, H] -> [u, B, L, max(N / u, 1), H]: the heads for each rank, repeated where there are too few."""
    heads = x_BLNH.shape[2]
    if heads < size:
        x_BLNH = x_BLNH.repeat_interleave(size // heads, dim=2)
    return x_BLNH.unflatten(2, (size, -1)).movedim(2, 0)


def heads_in_order(parts_uBLNH: Tensor) -> Tensor:
    """[u, B, L, n, H] -> [B, L, u n, H], contiguous."""
    return parts_uBLNH.movedim(0, 2).flatten(2, 3)


def _add_copies(parts_uBLKH: Tensor, copies: int) -> Tensor:
    """Add the gradients of each `copies` ranks in a row, which had the same head: [u, ...] -> [u / copies, ...]."""
    if copies == 1:
        return parts_uBLKH
    wide = torch.promote_types(parts_uBLKH.dtype, torch.float32)
    return parts_uBLKH.unflatten(0, (-1, copies)).sum(1, dtype=wide).to(parts_uBLKH.dtype)


def _in_sequence(shares_uBLNH: Tensor) -> Tensor:
    """Shares of neighbouring ranks, [u, B, L, n, H] -> [B, u L, n, H] by position: early chunks, then mirrored late."""
    early, late = shares_uBLNH.chunk(2, dim=2)
    return torch.cat((*early.unbind(0), *late.flip(0).unbind(0)), dim=1)


def _by_share(x_BSNH: Tensor, size: int) -> Tensor:
    """The inverse: [B, u L, n, H] by position -> [u, B, L, n, H], each rank's early and late chunk."""
    early, late = (half.unflatten(1, (size, -1)).movedim(1, 0) for half in x_BSNH.chunk(2, dim=1))
    return torch.cat((early, late.flip(0)), dim=2)
