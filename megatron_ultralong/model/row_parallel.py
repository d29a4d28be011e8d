"""megatron-core's RowParallelLinear under sequence parallelism, without two whole sequences of its own.

Its product over all positions of the tensor-parallel group, before they are added up and split, and in backward the
gradient gathered from all of them, are each [L, B, D]: 2.1 GB at 262,144 positions of width 4096 in bf16, though
megatron-core keeps a buffer of just that size for good, into which ColumnParallelLinear gathers its input. Here both
lie in that buffer. Nothing else needs it meanwhile: whatever is written there is used up by the call that wrote it,
on one stream. The same products and sums, so the same bytes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ultralong.engine import mcore
from megatron_ultralong.model.weight_gradients import add_into_buffer


class RowParallelLinear(mcore.RowParallelLinear):
    """As megatron-core's: input [L, B, in / tp] -> [L / tp, B, out] and the bias, which is for the caller to add."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """As megatron-core's, whose own runs where the sequence is not split."""
        if not (self.sequence_parallel and self.skip_bias_add and self.weight.requires_grad) or self.is_expert:
            return super().forward(input_)
        output: Tensor = _Product.apply(input_, self.weight, self.gradient_accumulation_fusion, self.tp_group)
        return output, self.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_LBF: Tensor, weight_DF: Tensor, fused: bool, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(x_LBF, weight_DF)
        ctx.main_grad = getattr(weight_DF, "main_grad", None) if fused else None
        ctx.group = group
        L, B, _ = x_LBF.shape
        partial_LBD = _buffer((L, B, weight_DF.shape[0]), x_LBF)
        torch.mm(x_LBF.reshape(L * B, -1), weight_DF.t(), out=partial_LBD.view(L * B, -1))
        out_LBD = x_LBF.new_empty(L // group.size(), B, weight_DF.shape[0])
        dist.reduce_scatter_tensor(out_LBD, partial_LBD, group=group)
        return out_LBD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        # First: a checkpoint computes them again here, which gathers into the same buffer.
        x_LBF, weight_DF = ctx.saved_tensors
        L, B, _ = x_LBF.shape
        grad_LBD = _buffer((L, B, weight_DF.shape[0]), x_LBF)
        dist.all_gather_into_tensor(grad_LBD, gradients[0].contiguous(), group=ctx.group)
        grad_ND = grad_LBD.view(L * B, -1)
        d_x_NF = grad_ND @ weight_DF
        d_weight_DF = _weight_gradient(weight_DF, ctx.main_grad, x_LBF.reshape(L * B, -1), grad_ND)
        return d_x_NF.view(x_LBF.shape), d_weight_DF, None, None


def _buffer(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """megatron-core's own, into which inputs are gathered."""
    buffer: Tensor = mcore.parallel_state.get_global_memory_buffer().get_tensor(list(shape), like.dtype, "mpu")
    return buffer


def _weight_gradient(weight_DF: Tensor, main_grad: Tensor | None, x_NF: Tensor, grad_ND: Tensor) -> Tensor | None:
    """[D, F]; where it was added to DDP's buffer at once, a stand-in that DDP passes over, as megatron-core's."""
    if main_grad is None:
        return grad_ND.t() @ x_NF
    add_into_buffer(main_grad, x_NF, grad_ND)
    if not hasattr(weight_DF, "grad_added_to_main_grad"):
        return None
    weight_DF.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    return torch.empty(main_grad.shape, dtype=x_NF.dtype, device=x_NF.device)
