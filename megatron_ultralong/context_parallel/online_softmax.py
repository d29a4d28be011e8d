"""Online softmax: one block's attention output and log-sum-exp folded into the accumulators, in place.

Given partial outputs over disjoint sets of keys with their log-sum-exps, the output over both sets is
o + sigmoid(l' - l) (o' - o) with log-sum-exp log(e^l + e^l'). The sigmoid never overflows, whatever the logits.

No whole copy of a block in fp32 ever exists. A GPU widens a block as it reads it: one Triton kernel where Triton is,
else six of PyTorch's, whatever the number of rows, and beside the tensors given one of the log-sum-exp's size. A
CPU would make a copy, so there a block of another dtype is folded a few rows at a time, which stay in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_ultralong.context_parallel import fold_triton
from megatron_ultralong.engine.device import gpu_capability

_ROWS = 256  # widened at a time on a CPU; their fp32 copy stays in a core's cache


def fold(out_BLNH: Tensor, lse_BLN: Tensor, block_out_BLNH: Tensor, block_lse_BLN: Tensor) -> None:
    """Fold a block into `out_BLNH` and `lse_BLN` (fp32 or fp64, changed in place).

    Rows that nothing was folded into, and rows of the block that saw no key, have log-sum-exp -inf and any
    finite output.
    """
    if fold_triton.takes(out_BLNH):
        fold_triton.fold(out_BLNH, lse_BLN, block_out_BLNH, block_lse_BLN)
    elif gpu_capability(out_BLNH.device) is not None:
        fold_whole(out_BLNH, lse_BLN, block_out_BLNH, block_lse_BLN)
    else:
        for rows in _slices(out_BLNH, block_out_BLNH):
            _fold_rows(out_BLNH[:, rows], lse_BLN[:, rows], block_out_BLNH[:, rows], block_lse_BLN[:, rows])


def fold_whole(out_BLNH: Tensor, lse_BLN: Tensor, block_out_BLNH: Tensor, block_lse_BLN: Tensor) -> None:
    """`fold` by operators on whole tensors, none of which makes another of the output's size on a GPU."""
    share_BLN1 = (block_lse_BLN - lse_BLN).sigmoid_().nan_to_num_(0.0).unsqueeze(-1)  # NaN: -inf on both sides
    out_BLNH.addcmul_(out_BLNH, share_BLN1, value=-1)
    out_BLNH.addcmul_(block_out_BLNH, share_BLN1)
    torch.logaddexp(lse_BLN, block_lse_BLN, out=lse_BLN)


def _fold_rows(out_BLNH: Tensor, lse_BLN: Tensor, block_out_BLNH: Tensor, block_lse_BLN: Tensor) -> None:
    share_BLN1 = torch.sigmoid(block_lse_BLN.to(lse_BLN.dtype) - lse_BLN).nan_to_num_(0.0).unsqueeze(-1)
    out_BLNH.lerp_(block_out_BLNH.to(out_BLNH.dtype), share_BLN1)
    torch.logaddexp(lse_BLN, block_lse_BLN, out=lse_BLN)


def add(total_BLNH: Tensor, block_BLNH: Tensor) -> None:
    """Add a block's gradient to an accumulator, in place and in the accumulator's dtype or the block's, the wider."""
    if gpu_capability(total_BLNH.device) is not None:
        total_BLNH.add_(block_BLNH)
        return
    for rows in _slices(total_BLNH, block_BLNH):
        total_BLNH[:, rows].add_(block_BLNH[:, rows])


def _slices(total: Tensor, block: Tensor) -> Iterator[slice]:
    """All rows at once, or a few at a time where one side must be widened."""
    length = total.shape[1]
    step = _ROWS if total.dtype != block.dtype else max(length, 1)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
