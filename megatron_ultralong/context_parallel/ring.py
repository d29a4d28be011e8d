"""Ring attention over a zig-zag layout: exact, streaming, documents of any length.

Each rank keeps its queries and passes keys and values on around the ring, receiving the next share while it
computes with the one at hand. Partial outputs are folded at once into one fp32 accumulator, so a call holds two
KV shares and one fp32 output whatever the ring's size (`ring_memory`). Backward sends KV around again, and
behind it an fp32 dKV that comes home after a full turn. `rectangles` says what is computed when, `exchange` moves rows.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ultralong.context_parallel import activation_recomputation, kernels, online_softmax, rectangles
from megatron_ultralong.context_parallel.ring_exchange import Neighbours
from megatron_ultralong.context_parallel.ring_travel import TravellingGradients, TravellingKeys
from megatron_ultralong.errors import UserError

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class _Call:
    """What one call of attention is: its plan, its neighbours (None: alone), and the kernels' arguments."""

    plan: rectangles.Plan
    neighbours: Neighbours | None
    causal: bool
    scale: float

    @property
    def bounds(self) -> tuple[int, ...] | None:
        """Bounds of the documents in this rank's own share; None: it is of one document."""
        return self.plan.documents if len(self.plan.documents) > 2 else None


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, call: _Call) -> Tensor:
        out_BLNH, lse_BLN = activation_recomputation.once(lambda: _attend(q_BLNH, k_BLKH, v_BLKH, call))
        ctx.save_for_backward(q_BLNH, k_BLKH, v_BLKH, out_BLNH, lse_BLN)
        ctx.call = call
        return out_BLNH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BLNH, k_BLKH, v_BLKH, out_BLNH, lse_BLN = ctx.saved_tensors
        by_row = (_for_kernels(gradients[0]), q_BLNH, out_BLNH, lse_BLN)
        return *_differentiate(by_row, k_BLKH, v_BLKH, ctx.call), None


def _attend(q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """Output in q's dtype and its log-sum-exp, over the whole ring."""
    if call.neighbours is None:
        return kernels.forward(q_BLNH, k_BLKH, v_BLKH, call.causal, call.scale, call.bounds)
    keys = TravellingKeys(call.plan, call.neighbours, k_BLKH, v_BLKH)
    out_BLNH, lse_BLN = kernels.forward(q_BLNH, k_BLKH, v_BLKH, call.causal, call.scale, call.bounds)
    out_BLNH = out_BLNH.to(lse_BLN.dtype)
    for number, step in enumerate(call.plan.steps[1:], start=1):
        k, v = keys.arrive(number)
        for block in step.blocks:
            rows, seen = block.rows, block.keys
            partial = kernels.forward(q_BLNH[:, rows], k[:, seen], v[:, seen], block.causal, call.scale)
            online_softmax.fold(out_BLNH[:, rows], lse_BLN[:, rows], *partial)
            del partial
    keys.leave()
    return out_BLNH.to(q_BLNH.dtype), lse_BLN


def _differentiate(
    by_row: tuple[Tensor, ...], k_BLKH: Tensor, v_BLKH: Tensor, call: _Call
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of this rank's share.

    What a rank finds for its own dK and dV stays with it; what others find for them travels behind the keys.

    Args:
        by_row: the output's gradient, q and the output, [B, L, N, H], and the log-sum-exp [B, L, N].
    """
    if call.neighbours is None:
        return _block_gradients(by_row, k_BLKH, v_BLKH, call, call.causal, call.bounds)
    keys = TravellingKeys(call.plan, call.neighbours, k_BLKH, v_BLKH)
    dq, dk, dv = _block_gradients(by_row, k_BLKH, v_BLKH, call, call.causal, call.bounds)
    wide, dtype = by_row[-1].dtype, dq.dtype
    dq = dq.to(wide)
    gradients = TravellingGradients(call.plan, call.neighbours, k_BLKH, wide)
    for number, step in enumerate(call.plan.steps[1:], start=1):
        k, v = keys.arrive(number)
        found = []
        for block in step.blocks:
            at_rows = tuple(x[:, block.rows] for x in by_row)
            more, block_dk, block_dv = _block_gradients(
                at_rows, k[:, block.keys], v[:, block.keys], call, block.causal, None
            )
            online_softmax.add(dq[:, block.rows], more)
            found.append((block.keys, block_dk, block_dv))
            del more, block_dk, block_dv
        gradients.add(number, found)
    keys.leave()
    gradients.come_home(dk, dv)
    return dq.to(dtype), dk, dv


def _block_gradients(
    by_row: tuple[Tensor, ...], k: Tensor, v: Tensor, call: _Call, causal: bool, bounds: tuple[int, ...] | None
) -> tuple[Tensor, Tensor, Tensor]:
    grad, q, out, lse = by_row
    return kernels.backward(grad, q, k, v, out, lse, causal, call.scale, bounds)


def ring_attention(
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    *,
    group: dist.ProcessGroup | None,
    cu_seqlens: Sequence[int] | Tensor | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
) -> Tensor:
    """Attention over a sequence of S = L cp tokens whose zig-zag shares the ranks of `group` hold.

    Every rank of the group calls it with the same shapes, cu_seqlens and causal. There is no dropout, and no second
    derivative. It works in q's dtype, fp64, fp32, bf16 or fp16, also under autocast.

    Args:
        q_BLNH: this rank's queries, [B, L, N, H].
        k_BLKH: this rank's keys, [B, L, K, H]; N is a multiple of K.
        v_BLKH: this rank's values, [B, L, K, H].
        group: the context-parallel group; None for a sequence that is here whole.
        cu_seqlens: [documents + 1] bounds over the whole sequence, 0 first and S last: tokens attend only
            within their document. None: to everything. A tuple is best: a GPU tensor is copied to the host.
        causal: tokens attend to what precedes them, and to themselves; False: to what follows as well.
        softmax_scale: factor on the logits, with any attention factor in it; None: 1 / sqrt(H).

    Returns:
        [B, L, N, H] in q's dtype. Memory: `ring_memory.ring_memory`.

    Raises:
        ValueError: tensors that are not of such shapes, dtypes and one device; a group that is none.
        UserError: bad cu_seqlens; a dtype or head dimension that no kernel of the device takes.
        LostPeerError: a rank of the ring ended, or did not answer within the group's timeout (gloo; NCCL's watchdog
            ends the process itself).
    """
    call = _call(q_BLNH, k_BLKH, v_BLKH, group, cu_seqlens, causal, softmax_scale)
    return _RingAttention.apply(*(_for_kernels(x) for x in (q_BLNH, k_BLKH, v_BLKH)), call)


def ring_gradients(
    grad_BLNH: Tensor,
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    out_BLNH: Tensor,
    lse_BLN: Tensor,
    *,
    group: dist.ProcessGroup | None,
    cu_seqlens: Sequence[int] | Tensor | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What backward of `ring_attention` computes, for one who kept its output and log-sum-exp.

    Args:
        grad_BLNH: the output's gradient; `out_BLNH` and `lse_BLN` are the output and, [B, L, N], its log-sum-exp, which
            `activation_recomputation.Keep` catches. The rest, and errors, as of `ring_attention`.

    Returns:
        The gradients of q, k and v, in their dtype.
    """
    call = _call(q_BLNH, k_BLKH, v_BLKH, group, cu_seqlens, causal, softmax_scale)
    grad, q, k, v, out = (_for_kernels(x) for x in (grad_BLNH, q_BLNH, k_BLKH, v_BLKH, out_BLNH))
    return _differentiate((grad, q, out, lse_BLN), k, v, call)


def _call(q: Tensor, k: Tensor, v: Tensor, group: Any, cu_seqlens: Any, causal: Any, softmax_scale: Any) -> _Call:
    """The call that these arguments of `ring_attention` ask for."""
    check(q, k, v, group)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"softmax_scale must be a finite number or None, and is {softmax_scale!r}")
    if not isinstance(causal, bool):
        raise ValueError(f"causal must be True or False, and is {causal!r}")
    neighbours = Neighbours(group) if group is not None and dist.get_world_size(group) > 1 else None
    rank, size = (neighbours.rank, neighbours.size) if neighbours is not None else (0, 1)
    bounds = None if cu_seqlens is None else _whole_numbers(cu_seqlens)
    if neighbours is not None:
        neighbours.connect(q.device)
    return _Call(rectangles.plan(q.shape[1] * size, rank, size, bounds, causal), neighbours, causal, scale)


def check(q: Tensor, k: Tensor, v: Tensor, group: Any) -> None:
    """Whether these can be attended with, in a sentence if not."""
    for name, x in {"q": q, "k": k, "v": v}.items():
        shown = f"{list(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        if not isinstance(x, Tensor) or x.layout != torch.strided or x.dtype not in _DTYPES:
            raise ValueError(f"{name} must be a dense tensor of fp64, fp32, bf16 or fp16; it is {shown}")
        if x.dim() != 4 or 0 in x.shape:  # PyTorch's kernels divide by sizes
            raise ValueError(f"{name} must have four dimensions, [B, L, heads, H], and none of 0; it is {shown}")
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    (B, L, N, H), (k_B, k_L, K, k_H) = q.shape, k.shape
    if k.shape != v.shape or (B, L, H) != (k_B, k_L, k_H) or N % K:
        raise ValueError(f"k and v must be alike, agree with q in B, L and H, and K must divide N; these are {shapes}")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        kinds = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise ValueError(f"q, k and v must be of one dtype on one device, not {kinds}")
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group must be a process group of torch.distributed, or None; it is {group!r}")
    if group is not None and dist.get_world_size(group) > 1 and L % 2:
        raise ValueError(f"each rank of a zig-zag layout holds two chunks of one length, not {L} tokens")


def _whole_numbers(cu_seqlens: Sequence[int] | Tensor) -> tuple[int, ...]:
    bounds: Any = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else cu_seqlens
    try:
        return tuple(operator.index(bound) for bound in bounds)
    except TypeError:
        raise UserError(f"cu_seqlens must be whole numbers in one dimension, and is {cu_seqlens!r}.") from None


def _for_kernels(x_BLNH: Tensor) -> Tensor:
    """A tensor whose channels lie together and whose strides a matrix product takes (no expanded dimension)."""
    return x_BLNH if x_BLNH.stride(-1) == 1 and 0 not in x_BLNH.stride() else x_BLNH.contiguous()
