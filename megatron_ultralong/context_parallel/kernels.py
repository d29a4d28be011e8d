"""Block attention with its log-sum-exp: PyTorch's own flash kernels behind one pair of functions.

`forward` returns the block's output and log-sum-exp; `backward` takes the output and log-sum-exp *merged* over
all blocks, so that the blocks' gradients sum to those of full attention. Nothing is built or downloaded: both
kernels are operators that PyTorch ships. Grouped-query attention is native; K and V are never expanded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ultralong.errors import UserError

_aten = torch.ops.aten


def forward(q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of one block.

    Args:
        q_BLNH: [B, L, N, H]; k_BLKH, v_BLKH: [B, L', K, H] with N a multiple of K, last dimension contiguous.
        causal: lower-triangular mask; needs L == L'.
        scale: factor on the logits.

    Returns:
        out [B, L, N, H] in q's dtype, and log-sum-exp [B, L, N] in fp32 (fp64 for fp64 inputs).

    Raises:
        UserError: a dtype that the device's kernel does not take.
    """
    if q_BLNH.device.type == "cpu":
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            q_BLNH.transpose(1, 2), k_BLKH.transpose(1, 2), v_BLKH.transpose(1, 2), 0.0, causal, scale=scale
        )
        return out.transpose(1, 2), lse.transpose(1, 2)
    _check_cuda(q_BLNH)
    out, lse, *_ = _aten._flash_attention_forward(
        q_BLNH, k_BLKH, v_BLKH, None, None, q_BLNH.shape[1], k_BLKH.shape[1], 0.0, causal, False, scale=scale
    )
    return out, lse.transpose(1, 2)


def backward(
    grad_BLNH: Tensor,
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    out_BLNH: Tensor,
    lse_BLN: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block, given the merged output and log-sum-exp of its rows.

    Returns:
        dq [B, L, N, H], dk and dv [B, L', K, H], in the inputs' dtype.
    """
    if q_BLNH.device.type == "cpu":
        gradients = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(x.transpose(1, 2) for x in (grad_BLNH, q_BLNH, k_BLKH, v_BLKH, out_BLNH)),
            lse_BLN.transpose(1, 2),
            0.0,
            causal,
            scale=scale,
        )
        dq, dk, dv = (x.transpose(1, 2) for x in gradients)
        return dq, dk, dv
    _check_cuda(q_BLNH)
    no_random = torch.empty(0, dtype=torch.uint64, device=q_BLNH.device)
    return _aten._flash_attention_backward(
        grad_BLNH,
        q_BLNH,
        k_BLKH,
        v_BLKH,
        out_BLNH,
        lse_BLN.transpose(1, 2).contiguous(),
        None,
        None,
        q_BLNH.shape[1],
        k_BLKH.shape[1],
        0.0,
        causal,
        no_random,
        no_random,
        scale=scale,
    )


def _check_cuda(q_BLNH: Tensor) -> None:
    if q_BLNH.dtype not in (torch.bfloat16, torch.float16):
        raise UserError(
            f'train.precision: PyTorch\'s flash kernel on a GPU takes bf16, not {q_BLNH.dtype}; set it to "bf16".'
        )


def reference(
    q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, scale: float, cu_seqlens: tuple[int, ...] | None = None
) -> Tensor:
    """Plain causal attention over a whole sequence, differentiable, in the inputs' dtype: the slow twin.

    Materialises [B, N, S, S] scores; for tests and for short sequences.
    """
    S, groups = q_BLNH.shape[1], q_BLNH.shape[2] // k_BLKH.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k_BLKH, v_BLKH))
    scores = torch.einsum("bqnh,bknh->bnqk", q_BLNH, k) * scale
    mask = torch.ones(S, S, dtype=torch.bool, device=q_BLNH.device).tril()
    if cu_seqlens is not None:
        bounds = torch.tensor(cu_seqlens, device=q_BLNH.device)
        document = torch.bucketize(torch.arange(S, device=q_BLNH.device), bounds, right=True)
        mask &= document[:, None] == document[None, :]
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("bnqk,bknh->bqnh", weights, v)
