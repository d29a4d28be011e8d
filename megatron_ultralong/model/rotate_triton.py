"""`rotary.rotate` as one Triton kernel, which reads and writes each head once: the same roundings, so the same bits.

Triton comes with PyTorch's CUDA builds. A row is one position's one head, whole; a program takes a few of them.
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

_ROWS = 16


def takes(heads_LBNH: Tensor) -> bool:
    """Whether `rotated` is for such heads here: on a GPU, with channels that lie together."""
    return heads_LBNH.is_cuda and heads_LBNH.stride(-1) == 1 and triton is not None


def rotated(heads_LBNH: Tensor, table_LB1C: Tensor, sign: int) -> Tensor:
    """As `rotary._rotated`; the table is in the heads' dtype."""
    L, B, N, H = heads_LBNH.shape
    out_LBNH = torch.empty(heads_LBNH.shape, dtype=heads_LBNH.dtype, device=heads_LBNH.device)
    table_LB1C, rows, half = table_LB1C.contiguous(), L * B * N, table_LB1C.shape[-1] // 2
    channels = 1 << (H - 1).bit_length()
    _kernel[(-(-rows // _ROWS),)](
        *(heads_LBNH, table_LB1C, out_LBNH, rows, B, N, H, half),
        *heads_LBNH.stride()[:3],
        float(sign),
        ROWS=_ROWS,
        CHANNELS=channels,
        enable_fp_fusion=False,  # a product and a sum in one would round once
    )
    return out_LBNH


def _rotate(  # type: ignore[no-untyped-def]  # a program in Triton's language
    heads,
    table,
    out,
    rows,
    B,
    N,
    H,
    half,
    heads_l,
    heads_b,
    heads_n,
    sign,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    position = row // N  # L B
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = (row < rows)[:, None] & (channel < H)
    turned = inside & (channel < 2 * half)
    pair = tl.where(channel < half, channel + half, channel - half)

    start = heads + (position // B * heads_l + position % B * heads_b + row % N * heads_n)[:, None]
    own = tl.load(start + channel, mask=inside, other=0.0)
    other = tl.load(start + pair, mask=turned, other=0.0)
    angle = table + (position * 2 * half)[:, None] + tl.where(channel < half, channel, channel - half)
    cos = tl.load(angle, mask=turned, other=1.0)
    sin = tl.load(angle + half, mask=turned, other=0.0)
    # Each product is rounded to the heads' dtype before they are added, as PyTorch's operators round it.
    first = (own.to(tl.float32) * cos.to(tl.float32)).to(own.dtype).to(tl.float32)
    second = (other.to(tl.float32) * sin.to(tl.float32)).to(own.dtype).to(tl.float32)
    second = tl.where(channel < half, -sign * second, sign * second)
    tl.store(out + row[:, None] * H + channel, tl.where(turned, first + second, own.to(tl.float32)), mask=inside)


_kernel: Any = None if triton is None else triton.jit(_rotate)
