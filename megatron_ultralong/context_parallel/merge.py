"""Folding one block's attention into what has been accumulated, in place.

Given partial outputs over disjoint sets of keys with their log-sum-exps, the output over both sets is
o + sigmoid(l' - l) (o' - o) with log-sum-exp log(e^l + e^l'). The sigmoid never overflows, whatever the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fold(out_BLNH: Tensor, lse_BLN: Tensor, block_out_BLNH: Tensor, block_lse_BLN: Tensor) -> None:
    """Fold a block into `out_BLNH` and `lse_BLN` (fp32 or fp64, changed in place).

    Rows that nothing was folded into have log-sum-exp -inf and any finite output.
    """
    share_BLN1 = torch.sigmoid(block_lse_BLN - lse_BLN).unsqueeze(-1)
    out_BLNH.lerp_(block_out_BLNH.to(out_BLNH.dtype), share_BLN1.to(out_BLNH.dtype))
    torch.logaddexp(lse_BLN, block_lse_BLN.to(lse_BLN.dtype), out=lse_BLN)
