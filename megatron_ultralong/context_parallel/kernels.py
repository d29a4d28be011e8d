"""Block attention with its log-sum-exp: one pair of functions over whichever kernel suits the tensors.

`forward` returns the block's output and log-sum-exp; `backward` takes the output and log-sum-exp *merged* over
all blocks, so that the blocks' gradients sum to those of full attention. PyTorch ships a kernel for every device, so
nothing has to be built; flash-attn 2 and 3 are used where they are installed. Grouped-query attention is native: K
and V are never expanded. There is no dropout. `kernel_choice` says which kernel it is.

Deterministic: on a CPU always; on a GPU forward always, and backward under torch.use_deterministic_algorithms(True).
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ultralong.context_parallel import kernel_choice
from megatron_ultralong.context_parallel.kernels_plain import reference

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
    kernel = _kernel(q_BLNH, k_BLKH, bounds, False)
    out, lse = kernel.forward(q_BLNH, k_BLKH, v_BLKH, causal, scale, bounds)
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
    kernel = _kernel(q_BLNH, k_BLKH, bounds, True)
    dq, dk, dv = kernel.backward(grad_BLNH, q_BLNH, k_BLKH, v_BLKH, out_BLNH, lse_BLN, causal, scale, bounds)
    return dq, dk, dv


def _kernel(q: Tensor, k: Tensor, bounds: tuple[int, ...] | None, is_backward: bool) -> kernel_choice.Kernel:
    heads = kernel_choice.Heads(q.device, q.dtype, q.shape[2], k.shape[2], q.shape[3])
    return kernel_choice.choose(heads, bounds is not None, is_backward, torch.are_deterministic_algorithms_enabled())
