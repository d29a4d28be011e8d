"""Block attention with its log-sum-exp: one pair of functions over whichever kernel suits the tensors.

`forward` returns the block's output and log-sum-exp; `backward` takes the output and log-sum-exp *merged* over
all blocks, so that the blocks' gradients sum to those of full attention. PyTorch ships a kernel for every device, so
nothing has to be built; flash-attn 2 and 3 are used where they are installed. Grouped-query attention is native: K
and V are never expanded. There is no dropout. What was chosen is logged once for each kind of tensor.

Deterministic: on a CPU always; on a GPU forward always, and backward under torch.use_deterministic_algorithms(True).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from megatron_ultralong.context_parallel import kernels_cpu, kernels_gpu, kernels_plain
from megatron_ultralong.context_parallel.kernels_plain import reference
from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

__all__ = ["backward", "forward", "reference"]


def forward(
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    causal: bool,
    scale: float,
    bounds: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of one block.

    Args:
        q_BLNH: [B, L, N, H]; k_BLKH, v_BLKH: [B, L', K, H] with N a multiple of K, last dimension contiguous.
        causal: lower-triangular mask; needs L == L'.
        scale: factor on the logits.
        bounds: [documents + 1], 0 first and L last, rising: rows attend within their document; needs L == L'.

    Returns:
        out [B, L, N, H] in q's dtype, and log-sum-exp [B, L, N] in fp32 (fp64 for fp64 inputs).

    Raises:
        UserError: a dtype or head dimension that no kernel of the device takes.
    """
    out, lse = _kernel(q_BLNH, bounds, False).run(q_BLNH, k_BLKH, v_BLKH, causal, scale, bounds)
    return out, lse


def backward(
    grad_BLNH: Tensor,
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    out_BLNH: Tensor,
    lse_BLN: Tensor,
    causal: bool,
    scale: float,
    bounds: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block, given the merged output and log-sum-exp of its rows.

    Returns:
        dq [B, L, N, H], dk and dv [B, L', K, H], in the inputs' dtype.
    """
    kernel = _kernel(q_BLNH, bounds, True)
    dq, dk, dv = kernel.run(grad_BLNH, q_BLNH, k_BLKH, v_BLKH, out_BLNH, lse_BLN, causal, scale, bounds)
    return dq, dk, dv


@dataclasses.dataclass(frozen=True)
class _Kernel:
    name: str
    run: Callable[..., tuple[Tensor, ...]]


def _kernel(q: Tensor, bounds: tuple[int, ...] | None, is_backward: bool) -> _Kernel:
    deterministic = torch.are_deterministic_algorithms_enabled()
    return choose(q.device, q.dtype, q.shape[-1], bounds is not None, is_backward, deterministic)


@functools.cache
def choose(
    device: torch.device, dtype: torch.dtype, head_dim: int, documents: bool, is_backward: bool, deterministic: bool
) -> _Kernel:
    """The first kernel that takes such tensors, fastest first; logged when it is chosen."""
    if device.type == "cpu":
        kernel = _Kernel("PyTorch's flash kernel for CPUs", (kernels_cpu.forward, kernels_cpu.backward)[is_backward])
    elif dtype in (torch.float32, torch.float64):
        kernel = _Kernel("plain matrix products", (kernels_plain.forward, kernels_plain.backward)[is_backward])
        logger.warning("On a GPU attention is fast in bf16 only; in %s it runs as plain matrix products.", dtype)
    else:
        kernel = _on_gpu(device, dtype, head_dim, documents, is_backward, deterministic)
    way = "backward" if is_backward else "forward"
    logger.info(
        "Attention %s%s: %s (%s, %s, head dim %d).",
        *(way, " within documents" if documents else "", kernel.name, device.type, dtype, head_dim),
    )
    return kernel


def _on_gpu(
    device: torch.device, dtype: torch.dtype, head_dim: int, documents: bool, is_backward: bool, deterministic: bool
) -> _Kernel:
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise UserError(
            f"Attention on a GPU needs compute capability 8.0 (A100) or newer, and this one has {capability}."
        )
    if head_dim % 8 or head_dim > 256:
        raise UserError(
            f"Attention on a GPU needs heads of at most 256 channels, a multiple of 8, and these have {head_dim}."
        )
    small = head_dim <= 128
    hopper, atomics = capability >= (9, 0), is_backward and deterministic
    gpu = kernels_gpu
    offered = [
        (
            capability[0] == 9 and (small or not atomics) and gpu.flash_attn(3) is not None,
            "flash-attn 3",
            (gpu.flash_attn_3_forward, gpu.flash_attn_3_backward),
        ),
        (
            hopper and small and not documents and not atomics,
            "cuDNN's kernel",
            (gpu.cudnn_forward, gpu.cudnn_backward),
        ),
        (gpu.flash_attn(2) is not None, "flash-attn 2", (gpu.flash_attn_2_forward, gpu.flash_attn_2_backward)),
        (True, "PyTorch's flash kernel", (gpu.torch_flash_forward, gpu.torch_flash_backward)),
    ]
    return next(_Kernel(name, pair[is_backward]) for fits, name, pair in offered if fits)
