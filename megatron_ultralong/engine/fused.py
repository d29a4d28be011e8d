"""Fewer, larger kernels where megatron-core 0.16.1 would use Transformer Engine's or apex's, and neither is installed.

Its own stand-ins launch a kernel a parameter, and for the gradient's norm wait for the GPU once a parameter. These are
PyTorch's: a norm and a scaling of all gradients at once, Adam as one operator, and a weight's gradient that its matrix
product adds to DDP's buffer itself. Where Transformer Engine or apex is installed, theirs stay.
"""

from __future__ import annotations

import logging
import types
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.engine.device import gpu_capability
from megatron_ultralong.engine.mcore import clip_grads, mcore_utils, tensor_parallel_layers

logger = logging.getLogger(__name__)


def gradient_norms(always: bool = False) -> None:
    """Let the norm and the clipping of gradients take all of them at once.

    Args:
        always: the norm is PyTorch's even where another is installed: gradients may be of several dtypes.
    """
    if always or clip_grads.l2_norm_impl is mcore_utils.local_multi_tensor_l2_norm:
        clip_grads.l2_norm_impl = _l2_norm
    if clip_grads.multi_tensor_scale_impl is mcore_utils.local_multi_tensor_scale:
        clip_grads.multi_tensor_scale_impl = _scale


def _l2_norm(chunk: int, overflow: Tensor, lists: list[list[Tensor]], per_tensor: bool) -> tuple[Tensor, None]:
    """As amp_C.multi_tensor_l2norm: the norm of everything, [1], in fp32, where the tensors are."""
    (tensors,) = lists
    return torch.stack(torch._foreach_norm(tensors, 2, torch.float32)).norm().view(1), None


def _scale(chunk: int, overflow: Tensor, lists: list[list[Tensor]], factor: float) -> None:
    """As amp_C.multi_tensor_scale, from the first list into the second."""
    source, target = lists
    if source is not target:
        torch._foreach_copy_(target, source)
    torch._foreach_mul_(target, factor)


def adam(optimizer: Any) -> None:
    """Let torch's Adam inside megatron-core's `optimizer` be one operator; others are fused by themselves."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner: Any = getattr(part, "optimizer", None)
        if type(inner).__module__.startswith("torch.optim"):
            for group in inner.param_groups:
                group.update(fused=True, foreach=False)


def gradient_accumulation(device: torch.device, into: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether weights' gradients can be added to DDP's buffer by the matrix product that makes them; then they will.

    apex's extension does it where it is installed. Else PyTorch's addmm does, if a small product comes out right here.

    Args:
        device: where the model is.
        into: the buffer's dtype.
        dtype: the model's.
    """
    layers = tensor_parallel_layers
    if layers._grad_accum_fusion_available and layers.fused_weight_gradient_mlp_cuda is not _by_addmm:
        return True
    if device.type == "cuda" and not _adds(device, into, dtype):
        return False
    layers.fused_weight_gradient_mlp_cuda, layers._grad_accum_fusion_available = _by_addmm, True
    return True


def _adds(device: torch.device, into: torch.dtype, dtype: torch.dtype) -> bool:
    x, grad = (torch.arange(64, device=device).view(8, 8).remainder(n).to(dtype) for n in (5, 3))
    total = torch.ones(8, 8, device=device, dtype=into)
    try:
        _add_product(x, grad, total)
        right = torch.equal(total.double(), 1 + grad.double().t() @ x.double())
    except (RuntimeError, TypeError, NotImplementedError) as error:
        right, reason = False, f": {str(error).splitlines()[0]}"
    else:
        reason = ", which gives a wrong sum"
    if not right:
        logger.warning("Gradients are not added by their matrix products, with PyTorch's addmm here%s.", reason)
    return right


def _add_product(total_input: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
    """main_grad += grad_output^T total_input, [N, out] and [N, in]; summed and added in the buffer's precision."""
    if main_grad.dtype == total_input.dtype:
        main_grad.addmm_(grad_output.t(), total_input)
    elif gpu_capability(main_grad.device) is not None:
        torch.addmm(main_grad, grad_output.t(), total_input, out_dtype=main_grad.dtype, out=main_grad)
    else:
        main_grad.add_(grad_output.t() @ total_input)


_by_addmm: Any = types.SimpleNamespace(wgrad_gemm_accum_fp32=_add_product, wgrad_gemm_accum_fp16=_add_product)
"""In the place of apex's fused_weight_gradient_mlp_cuda."""
