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

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.engine.device import to_device
from megatron_ultralong.model.loss_options import DEFAULT, LossOptions, chunk_rows
from megatron_ultralong.model.norms import norm_gradients, normed
from megatron_ultralong.model.weight_gradients import add_product


def sum_of_losses(
    hidden_LBD: Tensor,
    weight_VD: Tensor,
    labels_BL: Tensor,
    loss_mask_BL: Tensor,
    group: dist.ProcessGroup,
    sequence_parallel: bool = False,
    options: LossOptions = DEFAULT,
    norm: torch.nn.RMSNorm | None = None,
) -> Tensor:
    """Cross-entropy of the next tokens, in nats, weighted by the mask and summed.

    Args:
        hidden_LBD: output of the last norm; with `sequence_parallel`, this rank's L / tp consecutive positions.
        weight_VD: this rank's rows of the head, V / tp, in the hidden states' dtype.
        labels_BL: int64; the same on every rank of the group.
        loss_mask_BL: float32 weights; where 0, the label may be anything and costs nothing. Best on the host: from a
            GPU it is copied, which waits for all that the GPU has still to do.
        group: the tensor-parallel group.
        sequence_parallel: hidden states are split over the group along L.
        options: chunk and z-loss.
        norm: the last norm, if `hidden_LBD` is its input: then neither its output nor what its backward needs is ever
            whole. Its weight's gradient is added up over chunks in fp32.

    Returns:
        fp32 scalar, the same on every rank. It can be differentiated once.
    """
    total: Tensor = _SumOfLosses.apply(
        *(hidden_LBD, weight_VD, None if norm is None else norm.weight),
        *(labels_BL, loss_mask_BL, group, sequence_parallel, options, norm),
    )
    return total


class _SumOfLosses(torch.autograd.Function):
    """See `sum_of_losses`: gradients are computed in forward and scaled in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_LBD: Tensor,
        weight_VD: Tensor,
        norm_weight_D: Tensor | None,
        labels_BL: Tensor,
        loss_mask_BL: Tensor,
        group: dist.ProcessGroup,
        sequence_parallel: bool,
        options: LossOptions,
        norm: torch.nn.RMSNorm | None,
    ) -> Tensor:
        ranks = group.size() if sequence_parallel else 1
        rows_ND = hidden_LBD.flatten(0, 1)
        # Row r of every rank's share side by side: [ranks, L / ranks x B].
        labels_RN = labels_BL.t().reshape(ranks, len(rows_ND))
        weights_RN = loss_mask_BL.cpu().numpy().T.reshape(ranks, len(rows_ND))
        mask_RN = to_device(torch.from_numpy(weights_RN), hidden_LBD.device)
        total = hidden_LBD.new_zeros((), dtype=torch.float64)
        wanted = hidden_LBD.requires_grad or weight_VD.requires_grad
        d_rows_ND = torch.empty_like(rows_ND) if wanted else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wanted else None
        late = _LateNorm(norm, None if sequence_parallel else group)
        step = chunk_rows(options, weight_VD.shape[0], ranks)
        for first in range(0, rows_ND.shape[0], step):
            part = slice(first, first + step)
            labelled = _Labelled.of(weights_RN[:, part], hidden_LBD.device)
            if not labelled.count:  # on every rank, since the mask is the same on every rank
                if d_rows_ND is not None:
                    d_rows_ND[part].zero_()
                continue
            chunk_ND = _gather(late.forward(rows_ND[part]), group if ranks > 1 else None)
            used_ND, labels_N, mask_N = (
                labelled.of_all(x) for x in (chunk_ND, labels_RN[:, part].reshape(-1), mask_RN[:, part].reshape(-1))
            )
            loss, d_logits_NV = _chunk(used_ND, weight_VD, labels_N, mask_N, group, options)
            total += loss
            if d_rows_ND is None or d_weight_VD is None:
                continue
            d_logits_NV = d_logits_NV.to(weight_VD.dtype)
            add_product(d_weight_VD, d_logits_NV, used_ND)
            del used_ND
            labelled.back_to_all(d_logits_NV, weight_VD, d_rows_ND[part], group if ranks > 1 else None)
            del chunk_ND, d_logits_NV  # before the next chunk's are made
            late.backward(rows_ND[part], d_rows_ND[part])
        ctx.gradients = d_rows_ND, d_weight_VD, late.gradient_D
        ctx.shape, ctx.dtype, ctx.reduce_over = hidden_LBD.shape, weight_VD.dtype, late.left_to_reduce
        return total.float()

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> Any:  # type: ignore[override]
        d_rows_ND, d_weight_VD, d_norm_D = ctx.gradients
        ctx.gradients = None  # scaled in place below: a second backward would scale twice
        d_rows_ND.mul_(d_total)
        if ctx.reduce_over is not None and ctx.reduce_over.size() > 1:
            dist.all_reduce(d_rows_ND, group=ctx.reduce_over)
        d_norm_D = None if d_norm_D is None else d_norm_D.mul_(d_total).to(ctx.dtype)
        return d_rows_ND.view(ctx.shape), d_weight_VD.mul_(d_total).to(ctx.dtype), d_norm_D, *[None] * 6


class _LateNorm:
    """The last norm, chunk by chunk, if the hidden states are its input; else nothing.

    Args:
        norm: None: the hidden states are normed.
        group: over which the gradients of the normed rows are to be added up; None: they are whole.

    Attributes:
        gradient_D: of the norm's weight, in fp32 (fp64 in an fp64 model).
        left_to_reduce: the group, if this has not added them up.
    """

    def __init__(self, norm: torch.nn.RMSNorm | None, group: dist.ProcessGroup | None) -> None:
        self.norm, self.group = norm, group
        self.left_to_reduce, self.gradient_D = group, None
        if norm is not None:
            wide = torch.promote_types(norm.weight.dtype, torch.float32)
            self.left_to_reduce, self.gradient_D = None, torch.zeros_like(norm.weight, dtype=wide)

    def forward(self, rows_ND: Tensor) -> Tensor:
        """Normed rows."""
        return rows_ND if self.norm is None else normed(self.norm, rows_ND)

    def backward(self, rows_ND: Tensor, grad_ND: Tensor) -> None:
        """Change `grad_ND`, of the normed rows, into that of `rows_ND`, in place."""
        if self.norm is None or self.gradient_D is None:
            return
        if self.group is not None and self.group.size() > 1:
            dist.all_reduce(grad_ND, group=self.group)
        d_rows_ND, d_weight_D = norm_gradients(self.norm, rows_ND, grad_ND)
        grad_ND.copy_(d_rows_ND)
        self.gradient_D += d_weight_D


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """Which positions of a chunk have a label, known on the host, so that nothing waits for the GPU to say it.

    Attributes:
        count: how many.
        places: int64, which; None: all of them, which then need no copy.
    """

    count: int
    places: Tensor | None

    @classmethod
    def of(cls, weights_RN: npt.NDArray[np.float32], device: torch.device) -> _Labelled:
        """By a chunk's loss mask."""
        places = weights_RN.reshape(-1).nonzero()[0]
        if len(places) in (0, weights_RN.size):
            return cls(len(places), None)
        return cls(len(places), to_device(torch.from_numpy(places), device))

    def of_all(self, x_N: Tensor) -> Tensor:
        """Of a tensor over the chunk, the rows with labels."""
        return x_N if self.places is None else x_N[self.places]

    def back_to_all(
        self, d_logits_NV: Tensor, weight_VD: Tensor, out_ND: Tensor, group: dist.ProcessGroup | None
    ) -> None:
        """The gradient of this rank's hidden states in the chunk; `group`: whose rows were gathered, if they were."""
        if self.places is None and group is None:
            torch.mm(d_logits_NV, weight_VD, out=out_ND)
            return
        d_rows_ND = d_logits_NV @ weight_VD
        if self.places is not None:
            rows = out_ND.shape[0] * (1 if group is None else group.size())
            whole_ND = out_ND.new_zeros(rows, out_ND.shape[1]) if group is not None else out_ND.zero_()
            d_rows_ND = whole_ND.index_copy_(0, self.places, d_rows_ND)
        if group is not None:
            dist.reduce_scatter_tensor(out_ND, d_rows_ND, group=group)


def _chunk(
    rows_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, mask_N: Tensor, group: dist.ProcessGroup, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Weighted loss of these rows (fp64 scalar), and its gradient by this rank's logits (fp32, [N, V / tp])."""
    z_loss = options.z_loss
    logits_NV = (rows_ND @ weight_VD.t()).float()
    real = options.vocabulary - group.rank() * weight_VD.shape[0] if options.vocabulary else weight_VD.shape[0]
    if real < weight_VD.shape[0]:
        logits_NV[:, max(0, real) :] = -torch.inf
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


def _gather(rows_ND: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The ranks' rows one after another; None: there is one."""
    if group is None:
        return rows_ND
    gathered = rows_ND.new_empty(group.size() * rows_ND.shape[0], rows_ND.shape[1])
    dist.all_gather_into_tensor(gathered, rows_ND.contiguous(), group=group)
    return gathered
