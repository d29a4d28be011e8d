"""Online softmax: one block's attention output and log-sum-exp folded into the accumulators, in place.

Given partial outputs over disjoint sets of keys with their log-sum-exps, the output over both sets is
o + sigmoid(l' - l) (o' - o) with log-sum-exp log(e^l + e^l'). The sigmoid never overflows, whatever the logits.
A block in bf16 is widened a few rows at a time: no whole copy of it in fp32 ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS = 256  # widened at a time; their fp32 copy stays in a core's cache


def fold(out_BLNH: Tensor, lse_BLN: Tensor, block_out_BLNH: Tensor, block_lse_BLN: Tensor) -> None:
    """Fold a block into `out_BLNH` and `lse_BLN` (fp32 or fp64, changed in place).

    Rows that nothing was folded into, and rows of the block that saw no key, have log-sum-exp -inf and any
    finite output.
    """
    for rows in _slices(out_BLNH, block_out_BLNH):
        lse, block_lse = lse_BLN[:, rows], block_lse_BLN[:, rows].to(lse_BLN.dtype)
        share_BLN1 = torch.sigmoid(block_lse - lse).nan_to_num_(0.0).unsqueeze(-1)  # NaN: -inf on both sides
        out_BLNH[:, rows].lerp_(block_out_BLNH[:, rows].to(out_BLNH.dtype), share_BLN1)
        lse.copy_(torch.logaddexp(lse, block_lse))


def add(total_BLNH: Tensor, block_BLNH: Tensor) -> None:
    """Add a block's gradient to an accumulator, in place and in the accumulator's dtype or the block's, the wider."""
    for rows in _slices(total_BLNH, block_BLNH):
        total_BLNH[:, rows] += block_BLNH[:, rows]


def _slices(total: Tensor, block: Tensor) -> Iterator[slice]:
    """All rows at once, or a few at a time where one side must be widened on a CPU (a GPU does that as it reads)."""
    length = total.shape[1]
    step = _ROWS if total.dtype != block.dtype else max(length, 1)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
