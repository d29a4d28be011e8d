"""A weight's gradient by matrix products: added to DDP's buffer at once, or summed up over tiles of the sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ultralong.engine import mcore


def add_into_buffer(main_grad: Tensor, x_NF: Tensor, grad_NO: Tensor) -> None:
    """Add grad^T x to DDP's buffer, or another sum, [O, F], in one product: gradient_accumulation_fusion."""
    kernels = mcore.tensor_parallel_layers.fused_weight_gradient_mlp_cuda
    add = kernels.wgrad_gemm_accum_fp32 if main_grad.dtype == torch.float32 else kernels.wgrad_gemm_accum_fp16
    add(x_NF, grad_NO, main_grad)


def add_product(total_OF: Tensor, grad_NO: Tensor, x_NF: Tensor) -> None:
    """Add grad^T x to a sum in fp32 (fp64 in an fp64 model)."""
    if x_NF.dtype == total_OF.dtype:
        total_OF.addmm_(grad_NO.t(), x_NF)
    else:
        total_OF += grad_NO.t() @ x_NF


class WeightGradients:
    """The gradients of one layer's weights, in one backward, tile by tile.

    Args:
        fused: matrix products add to a sum themselves, and that is DDP's buffer where a weight has one in fp32. Other
            sums are kept here, in fp32 (fp64 in an fp64 model): a bf16 buffer would round each tile's addition, and
            lose the tiles that are less than 2^-9 of it.
    """

    def __init__(self, fused: bool) -> None:
        self.fused = fused
        self.sums: dict[Tensor, Tensor] = {}  # by identity: a tensor's hash

    def add_product(self, weight_OF: Tensor, x_NF: Tensor, grad_NO: Tensor) -> None:
        """Add grad^T x; the leading dimensions of both are positions."""
        x_NF, grad_NO = x_NF.flatten(0, -2), grad_NO.flatten(0, -2)
        main_grad = self._buffer(weight_OF)
        if self.fused:
            add_into_buffer(self._sum(weight_OF) if main_grad is None else main_grad, x_NF, grad_NO)
        else:
            add_product(self._sum(weight_OF), grad_NO, x_NF)

    def add(self, weight: Tensor, gradient: Tensor) -> None:
        """Add a tile's gradient of a norm or a bias."""
        self._sum(weight).add_(gradient)

    def of(self, weight: Tensor) -> Tensor | None:
        """The gradient for autograd; of a weight whose gradient is in DDP's buffer a stand-in, which DDP passes over.

        The stand-in has one number's storage: several weights' are there at once.
        """
        if weight in self.sums:
            return self.sums.pop(weight).to(weight.dtype)
        if self._buffer(weight) is None or not hasattr(weight, "grad_added_to_main_grad"):
            return None
        weight.grad_added_to_main_grad = True
        return weight.new_empty(1).expand(weight.shape)

    def _buffer(self, weight: Tensor) -> Tensor | None:
        main_grad: Tensor | None = getattr(weight, "main_grad", None) if self.fused and weight.dim() == 2 else None
        return main_grad if main_grad is not None and main_grad.dtype == _wide(weight) else None

    def _sum(self, weight: Tensor) -> Tensor:
        if weight not in self.sums:
            self.sums[weight] = torch.zeros_like(weight, dtype=_wide(weight))
        return self.sums[weight]


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
