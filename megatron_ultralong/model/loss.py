"""The language model's head and loss, over chunks of the sequence: [S, V] logits never exist.

megatron-core computes all logits of a rank, in the model's precision and again in fp32, before its
vocabulary-parallel cross-entropy: 262,144 positions of a 128,256-token vocabulary take 134 GB in fp32. Here a
chunk of positions at a time goes through the head, its loss and its gradients; what stays is the gradient of the
hidden states (as large as they are) and one of the head, in fp32. Both are computed in the forward pass, since
the loss is a sum whose gradient is one number: the head's three GEMMs run once, as in the eager form.
Positions without a label skip the head altogether.

Cost: 6 N D V / tp FLOPs for N labels; beyond the two gradients, `chunk` x V / tp x (4 bytes + one copy in the
model's precision where that is not fp32), see planning.memory.loss_memory. Communication over the tensor-parallel
group: three numbers a label, plus that of megatron-core's own head (an all-reduce of the gradient, or with sequence
parallelism a gather and a reduce-scatter, a chunk at a time).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.model.loss_options import DEFAULT, LossOptions, chunk_rows


def sum_of_losses(
    hidden_LBD: Tensor,
    weight_VD: Tensor,
    labels_BL: Tensor,
    loss_mask_BL: Tensor,
    group: dist.ProcessGroup,
    sequence_parallel: bool = False,
    options: LossOptions = DEFAULT,
) -> Tensor:
    """Cross-entropy of the next tokens, in nats, weighted by the mask and summed.

    Args:
        hidden_LBD: output of the last norm; with `sequence_parallel`, this rank's L / tp consecutive positions.
        weight_VD: this rank's rows of the head, V / tp, in the hidden states' dtype.
        labels_BL: int64; the same on every rank of the group.
        loss_mask_BL: float32 weights; where 0, the label may be anything and costs nothing.
        group: the tensor-parallel group.
        sequence_parallel: hidden states are split over the group along L.
        options: chunk and z-loss.

    Returns:
        fp32 scalar, the same on every rank. It can be differentiated once.
    """
    total: Tensor = _SumOfLosses.apply(
        hidden_LBD, weight_VD, labels_BL, loss_mask_BL, group, sequence_parallel, options
    )
    return total


class _SumOfLosses(torch.autograd.Function):
    """See `sum_of_losses`: gradients are computed in forward and scaled in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_LBD: Tensor,
        weight_VD: Tensor,
        labels_BL: Tensor,
        loss_mask_BL: Tensor,
        group: dist.ProcessGroup,
        sequence_parallel: bool,
        options: LossOptions,
    ) -> Tensor:
        ranks = group.size() if sequence_parallel else 1
        length, batch, width = hidden_LBD.shape
        rows_ND = hidden_LBD.reshape(-1, width)
        # Row r of every rank's share side by side: [ranks, L / ranks x B].
        labels_RN = labels_BL.t().reshape(ranks, length * batch)
        mask_RN = loss_mask_BL.t().reshape(ranks, length * batch)
        total = hidden_LBD.new_zeros((), dtype=torch.float64)
        wanted = hidden_LBD.requires_grad or weight_VD.requires_grad
        d_rows_ND = torch.zeros_like(rows_ND) if wanted else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wanted else None
        step = chunk_rows(options, weight_VD.shape[0], ranks)
        for first in range(0, rows_ND.shape[0], step):
            part = slice(first, first + step)
            chunk_ND = _gather(rows_ND[part], group) if ranks > 1 else rows_ND[part]
            mask_N = mask_RN[:, part].reshape(-1)
            kept = mask_N.nonzero().squeeze(1)
            if not kept.numel():
                continue  # on every rank, since the mask is the same on every rank
            used_ND = chunk_ND[kept]
            loss, d_logits_NV = _chunk(
                used_ND, weight_VD, labels_RN[:, part].reshape(-1)[kept], mask_N[kept], group, options
            )
            total += loss
            if d_rows_ND is None or d_weight_VD is None:
                continue
            d_logits_NV = d_logits_NV.to(weight_VD.dtype)
            _accumulate(d_weight_VD, d_logits_NV, used_ND)
            d_chunk_ND = torch.zeros_like(chunk_ND).index_copy_(0, kept, d_logits_NV @ weight_VD)
            d_rows_ND[part] = _scatter(d_chunk_ND, group) if ranks > 1 else d_chunk_ND
            del chunk_ND, used_ND, d_logits_NV, d_chunk_ND  # before the next chunk's are made
        ctx.gradients = d_rows_ND, d_weight_VD
        ctx.shape, ctx.dtype, ctx.reduce_over = hidden_LBD.shape, weight_VD.dtype, None if sequence_parallel else group
        return total.float()

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> Any:  # type: ignore[override]
        d_rows_ND, d_weight_VD = ctx.gradients
        ctx.gradients = None  # scaled in place below: a second backward would scale twice
        d_rows_ND.mul_(d_total)
        if ctx.reduce_over is not None and ctx.reduce_over.size() > 1:
            dist.all_reduce(d_rows_ND, group=ctx.reduce_over)
        return d_rows_ND.view(ctx.shape), d_weight_VD.mul_(d_total).to(ctx.dtype), None, None, None, None, None


def _chunk(
    rows_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, mask_N: Tensor, group: dist.ProcessGroup, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Weighted loss of these rows (fp64 scalar), and its gradient by this rank's logits (fp32, [N, V / tp])."""
    z_loss = options.z_loss
    logits_NV = (rows_ND @ weight_VD.t()).float()
    if options.vocabulary:
        logits_NV[:, max(0, options.vocabulary - group.rank() * weight_VD.shape[0]) :] = -torch.inf
    highest_N = logits_NV.amax(dim=-1)
    if group.size() > 1:
        dist.all_reduce(highest_N, dist.ReduceOp.MAX, group=group)
    logits_NV -= highest_N.unsqueeze(1)
    here_N = labels_N - group.rank() * weight_VD.shape[0]
    elsewhere_N = (here_N < 0) | (here_N >= weight_VD.shape[0])
    here_N1 = here_N.masked_fill(elsewhere_N, 0).unsqueeze(1)
    own_N = logits_NV.gather(1, here_N1).squeeze(1).masked_fill(elsewhere_N, 0.0)
    sums_2N = torch.stack((own_N, logits_NV.exp_().sum(dim=-1)))
    if group.size() > 1:
        dist.all_reduce(sums_2N, group=group)
    own_N, sum_N = sums_2N
    log_sum_N = sum_N.log()
    losses_N = log_sum_N - own_N
    slope_N = mask_N  # of the loss by the logarithm of the softmax's denominator
    if z_loss:
        z_N = log_sum_N + highest_N
        losses_N = losses_N + z_loss * z_N.square()
        slope_N = mask_N * (1.0 + 2.0 * z_loss * z_N)
    loss = (losses_N * mask_N).double().sum()
    d_logits_NV = logits_NV.mul_((slope_N / sum_N).unsqueeze(1))
    d_logits_NV.scatter_add_(1, here_N1, -mask_N.masked_fill(elsewhere_N, 0.0).unsqueeze(1))
    return loss, d_logits_NV


def _accumulate(d_weight_VD: Tensor, d_logits_NV: Tensor, rows_ND: Tensor) -> None:
    """Add d_logits^T rows to the head's gradient in fp32."""
    if rows_ND.dtype == d_weight_VD.dtype:
        d_weight_VD.addmm_(d_logits_NV.t(), rows_ND)
    else:
        d_weight_VD += d_logits_NV.t() @ rows_ND


def _gather(rows_ND: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The ranks' rows one after another."""
    gathered = rows_ND.new_empty(group.size() * rows_ND.shape[0], rows_ND.shape[1])
    dist.all_gather_into_tensor(gathered, rows_ND.contiguous(), group=group)
    return gathered


def _scatter(rows_ND: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's rows of the sum over ranks."""
    own = rows_ND.new_empty(rows_ND.shape[0] // group.size(), rows_ND.shape[1])
    dist.reduce_scatter_tensor(own, rows_ND, group=group)
    return own
