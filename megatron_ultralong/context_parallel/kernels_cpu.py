"""PyTorch's CPU flash kernel as a block kernel, and how its short sequences are made fast.

The kernel takes fp64, fp32, bf16 and fp16, any head dimension and grouped queries. Two habits of it cost time:
- it works on 512 keys at a time, so a causal square of 512 is computed whole, and one of 1,024 to three quarters. Short
  squares are therefore computed in bands: forward by rows, each band against the keys up to its own end, with a mask;
  backward by keys, each band against the rows from its own start on, where the kernel's own causal mask fits;
- a call costs some tens of microseconds, which is more than a document of a few tokens. Short documents of about one
  length are therefore computed as a batch, padded at their ends, where a causal mask keeps them from being seen.

On a CPU without bf16 matrix instructions (`engine.cpu_products`) bf16 is computed as fp32, and rounded at the end.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_ultralong.engine import cpu_products

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Lengths of causal squares that are computed in bands, and the rows of a band forward: all measured.
_BANDED, _BANDED_BACKWARD, _ROWS = range(97, 1281), range(97, 2049), 64
_SHORT = 64  # tokens of the longest document that is batched with others
_BATCH_ROWS = 4096  # padded rows in one batch, which bounds what is copied


def forward(
    q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, causal: bool, scale: float, bounds: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """See `kernels.forward`."""
    if cpu_products.is_slow(q_BLNH):
        out, lse = forward(q_BLNH.float(), k_BLKH.float(), v_BLKH.float(), causal, scale, bounds)
        return out.bfloat16(), lse
    banded = _BANDED if _may_be_banded(q_BLNH, causal) else range(0)
    if (bounds is None or len(bounds) == 2) and q_BLNH.shape[1] not in banded:
        return _plain(q_BLNH, k_BLKH, v_BLKH, causal, scale)
    out_BLNH = torch.empty(q_BLNH.shape, dtype=q_BLNH.dtype)
    lse_BLN = torch.empty(q_BLNH.shape[:3], dtype=torch.promote_types(q_BLNH.dtype, torch.float32))
    single, batches = _documents(bounds or (0, q_BLNH.shape[1]), causal)
    for first, last in single:
        for start, stop in _bands(first, last, _ROWS if last - first in banded else last - first):
            rows, keys = slice(start, stop), slice(first, stop)
            mask = _mask(start - first, stop - first, q_BLNH.dtype) if start > first else None
            out_BLNH[:, rows], lse_BLN[:, rows] = _plain(
                q_BLNH[:, rows], k_BLKH[:, keys], v_BLKH[:, keys], causal and mask is None, scale, mask
            )
    for batch in batches:
        q, k, v = (batch.take(x) for x in (q_BLNH, k_BLKH, v_BLKH))
        out, lse = _plain(q, k, v, causal, scale)
        batch.put(out_BLNH, out)
        batch.put(lse_BLN, lse)
    return out_BLNH, lse_BLN


def backward(
    grad_BLNH: Tensor,
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    out_BLNH: Tensor,
    lse_BLN: Tensor,
    causal: bool,
    scale: float,
    bounds: tuple[int, ...] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.backward`."""
    if cpu_products.is_slow(q_BLNH):
        grad, q, k, v, out = (x.float() for x in (grad_BLNH, q_BLNH, k_BLKH, v_BLKH, out_BLNH))
        dq, dk, dv = backward(grad, q, k, v, out, lse_BLN, causal, scale, bounds)
        return dq.bfloat16(), dk.bfloat16(), dv.bfloat16()
    inputs = (q_BLNH, k_BLKH, v_BLKH)
    banded = _BANDED_BACKWARD if _may_be_banded(q_BLNH, causal) else range(0)
    if (bounds is None or len(bounds) == 2) and q_BLNH.shape[1] not in banded:
        return _plain_backward(grad_BLNH, *inputs, out_BLNH, lse_BLN, causal, scale)
    dq, dk, dv = found = tuple(torch.empty(x.shape, dtype=x.dtype) for x in inputs)
    single, batches = _documents(bounds or (0, q_BLNH.shape[1]), causal)
    for first, last in single:
        width = 64 if last - first <= 512 else 128
        for start, stop in _bands(first, last, width if last - first in banded else last - first):
            rows, keys = slice(start, last), slice(start, stop)
            grad, q, out, lse = (x[:, rows] for x in (grad_BLNH, q_BLNH, out_BLNH, lse_BLN))
            more, dk[:, keys], dv[:, keys] = _plain_backward(
                grad, q, k_BLKH[:, keys], v_BLKH[:, keys], out, lse, causal, scale
            )
            if start == first:
                dq[:, rows] = more
            else:
                dq[:, rows].add_(more)
    for batch in batches:
        q, k, v = (batch.take(x) for x in inputs)
        grad, out = (batch.take(x, padding=0.0) for x in (grad_BLNH, out_BLNH))
        lse = batch.take(lse_BLN, padding=float("inf"))  # so that padded rows have weights of 0
        for whole, part in zip(found, _plain_backward(grad, q, k, v, out, lse, causal, scale), strict=True):
            batch.put(whole, part)
    return dq, dk, dv


def _plain(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    out, lse = _forward(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), 0.0, causal, attn_mask=mask, scale=scale
    )
    return out.transpose(1, 2), lse.transpose(1, 2)


def _plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """With fewer keys than rows, causal means that row i sees keys up to i."""
    gradients = _backward(*(x.transpose(1, 2) for x in (grad, q, k, v, out, lse)), 0.0, causal, scale=scale)
    dq, dk, dv = (x.transpose(1, 2) for x in gradients)
    return dq, dk, dv


def _may_be_banded(q: Tensor, causal: bool) -> bool:
    """Not in bf16: its backward is slower in bands (measured), and the bands' sums would be rounded."""
    return causal and q.dtype in (torch.float32, torch.float64)


def _bands(first: int, last: int, width: int) -> list[tuple[int, int]]:
    return [(start, min(start + width, last)) for start in range(first, last, width)]


def _mask(start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Additive mask of rows start:stop against keys 0:stop, a view of one that all bands share."""
    triangle, last = _triangle(dtype), _BANDED.stop
    return triangle[: stop - start, last - start : last - start + stop]


@functools.lru_cache(maxsize=2)
def _triangle(dtype: torch.dtype) -> Tensor:
    """[rows of a band, longest + rows]: row i may see columns up to the longest + i."""
    return torch.full((_ROWS, _BANDED.stop + _ROWS), float("-inf"), dtype=dtype).triu(_BANDED.stop + 1)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Documents of about one length, padded to one length.

    Attributes:
        documents: M, how many.
        rows: int64 [M length], the row that each padded place copies.
        padding: int64, places that are no document's.
        real: int64, the other places, and `real_rows` what they copy.
    """

    documents: int
    rows: Tensor
    padding: Tensor
    real: Tensor
    real_rows: Tensor

    def take(self, x_BL: Tensor, padding: float | None = None) -> Tensor:
        """[B, L, ...] -> [B M, length, ...]; padded places are copies of some row, or `padding`."""
        taken = x_BL.index_select(1, self.rows)
        if padding is not None:
            taken.index_fill_(1, self.padding, padding)
        return taken.unflatten(1, (self.documents, -1)).flatten(0, 1)

    def put(self, x_BL: Tensor, taken: Tensor) -> None:
        """The inverse, into `x_BL`; padded places are dropped."""
        places = taken.unflatten(0, (-1, self.documents)).flatten(1, 2)
        x_BL.index_copy_(1, self.real_rows, places.index_select(1, self.real))


@functools.lru_cache(maxsize=64)
def _documents(bounds: tuple[int, ...], causal: bool) -> tuple[list[tuple[int, int]], list[_Batch]]:
    """Documents that are computed alone, and batches of short ones (causal only)."""
    single: list[tuple[int, int]] = []
    short: dict[int, list[tuple[int, int]]] = {}
    for start, stop in itertools.pairwise(bounds):
        length = stop - start
        if causal and length <= _SHORT:
            padded = next(size for size in (4, 8, 16, 24, 32, 48, _SHORT) if size >= length)
            short.setdefault(padded, []).append((start, stop))
        else:
            single.append((start, stop))
    batches = [
        _batch(few, padded, bounds[-1])
        for padded, spans in sorted(short.items())
        for few in _by(spans, max(_BATCH_ROWS // padded, 1))
    ]
    return single, batches


def _by(spans: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    return (spans[start : start + size] for start in range(0, len(spans), size))


def _batch(spans: list[tuple[int, int]], padded: int, length: int) -> _Batch:
    starts, stops = torch.tensor(spans).unsqueeze(-1).unbind(1)
    rows = starts + torch.arange(padded)
    real = (rows < stops).flatten()
    rows = rows.clamp(max=length - 1).flatten()
    return _Batch(len(spans), rows, (~real).nonzero()[:, 0], real.nonzero()[:, 0], rows[real])
