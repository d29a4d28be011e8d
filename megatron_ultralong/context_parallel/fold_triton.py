"""`online_softmax.fold` as one Triton kernel: each accumulator is read and written once, each block read once.

Triton comes with PyTorch's CUDA builds. A row is one position's one head; a program takes a few rows whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    tl: Any
    triton: Any
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:
        triton = None

_ROWS = 16  # of a program: 16 x 128 channels are 8 KB of fp32 accumulator


def takes(out_BLNH: Tensor) -> bool:
    """Whether `fold` is for such tensors here."""
    return out_BLNH.is_cuda and out_BLNH.dtype == torch.float32 and triton is not None


def fold(out_BLNH: Tensor, lse_BLN: Tensor, block_out_BLNH: Tensor, block_lse_BLN: Tensor) -> None:
    """As `online_softmax.fold`, for fp32 accumulators and a block of any dtype; channels of each lie together."""
    B, L, N, H = out_BLNH.shape
    assert out_BLNH.stride(3) == block_out_BLNH.stride(3) == 1
    tensors, rows = (out_BLNH, lse_BLN, block_out_BLNH, block_lse_BLN), B * L * N
    strides = [stride for tensor in tensors for stride in tensor.stride()[:3]]
    channels = 1 << (H - 1).bit_length()
    _kernel[(-(-rows // _ROWS),)](*tensors, rows, L, N, H, *strides, ROWS=_ROWS, CHANNELS=channels)


def _fold(  # type: ignore[no-untyped-def]  # a program in Triton's language
    out,
    lse,
    block_out,
    block_lse,
    rows,
    L,
    N,
    H,
    out_b,
    out_l,
    out_n,
    lse_b,
    lse_l,
    lse_n,
    block_out_b,
    block_out_l,
    block_out_n,
    block_lse_b,
    block_lse_l,
    block_lse_n,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    n, l, b = row % N, row // N % L, row // N // L  # noqa: E741
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = here[:, None] & (channel < H)

    at = lse + b * lse_b + l * lse_l + n * lse_n
    own = tl.load(at, mask=here, other=0.0)
    other = tl.load(block_lse + b * block_lse_b + l * block_lse_l + n * block_lse_n, mask=here, other=0.0)
    other = other.to(tl.float32)
    highest, lowest = tl.maximum(own, other), tl.minimum(own, other)
    nothing = highest == float("-inf")
    fraction = tl.where(nothing, 0.0, tl.exp(lowest - tl.where(nothing, 0.0, highest)))  # the smaller by the larger
    share = tl.where(other > own, 1.0, fraction) / (1.0 + fraction)
    share = tl.where(nothing, 0.0, share)[:, None]
    tl.store(at, highest + tl.log(1.0 + fraction), mask=here)

    at = out + (b * out_b + l * out_l + n * out_n)[:, None] + channel
    block_at = block_out + (b * block_out_b + l * block_out_l + n * block_out_n)[:, None] + channel
    total = tl.load(at, mask=inside, other=0.0)
    block = tl.load(block_at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, total + share * (block - total), mask=inside)


_kernel: Any = None if triton is None else triton.jit(_fold)
