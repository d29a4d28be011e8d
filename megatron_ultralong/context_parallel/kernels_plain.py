"""Attention as plain matrix products, in any dtype on any device: what the fast kernels are held against.

`reference` is whole attention, differentiable, written to be read. `forward` and `backward` are the block kernels'
slow twins, with the gradient written out; they go over bands of rows, so that scores of 512 rows exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS = 512


def reference(
    q_BLNH: Tensor,
    k_BLKH: Tensor,
    v_BLKH: Tensor,
    scale: float,
    cu_seqlens: tuple[int, ...] | None = None,
    causal: bool = True,
) -> Tensor:
    """Attention over a whole sequence, differentiable, in the inputs' dtype: the slow twin of the ring.

    Materialises [B, N, S, S] scores; for tests and for short sequences.
    """
    S, groups = q_BLNH.shape[1], q_BLNH.shape[2] // k_BLKH.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k_BLKH, v_BLKH))
    scores = torch.einsum("bqnh,bknh->bnqk", q_BLNH, k) * scale
    mask = allowed(0, S, S, causal, cu_seqlens, q_BLNH.device)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("bnqk,bknh->bqnh", weights, v)


def allowed(
    start: int, stop: int, keys: int, causal: bool, bounds: tuple[int, ...] | None, device: torch.device
) -> Tensor:
    """Bool [stop - start, keys]: which keys rows start:stop may see."""
    row, key = torch.arange(start, stop, device=device)[:, None], torch.arange(keys, device=device)[None]
    mask = key <= row if causal else torch.ones(stop - start, keys, dtype=torch.bool, device=device)
    if bounds is not None:
        document = torch.bucketize(torch.arange(keys, device=device), torch.tensor(bounds, device=device), right=True)
        mask = mask & (document[start:stop, None] == document[None])
    return mask


def forward(
    q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, causal: bool, scale: float, bounds: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """See `kernels.forward`."""
    out_BLNH, wide = torch.empty_like(q_BLNH), torch.promote_types(q_BLNH.dtype, torch.float32)
    lse_BLN = torch.empty(q_BLNH.shape[:3], dtype=wide, device=q_BLNH.device)
    for rows, logits_BKGQS in _logits(q_BLNH, k_BLKH, causal, scale, bounds):
        lse_BKGQ = logits_BKGQS.logsumexp(-1)
        weights = (logits_BKGQS - lse_BKGQ[..., None]).exp()
        out_BLNH[:, rows] = torch.einsum("bkgqs,bskh->bqkgh", weights, v_BLKH.to(wide)).flatten(2, 3)
        lse_BLN[:, rows] = lse_BKGQ.permute(0, 3, 1, 2).flatten(2)
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
    """See `kernels.backward`. With weights P = exp(logits - lse): dV = P' dO, dS = P (dO V' - rowsum(dO O))."""
    kv_heads, wide = k_BLKH.shape[2], lse_BLN.dtype
    dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (q_BLNH, k_BLKH, v_BLKH))
    for rows, logits_BKGQS in _logits(q_BLNH, k_BLKH, causal, scale, bounds):
        grad, q, out = (x[:, rows].to(wide).unflatten(2, (kv_heads, -1)) for x in (grad_BLNH, q_BLNH, out_BLNH))
        lse = lse_BLN[:, rows].unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1)
        weights = (logits_BKGQS - lse[..., None]).exp()
        dv += torch.einsum("bkgqs,bqkgh->bskh", weights, grad)
        dweights = torch.einsum("bqkgh,bskh->bkgqs", grad, v_BLKH.to(wide))
        delta = (grad * out).sum(-1).permute(0, 2, 3, 1)
        dlogits = weights * (dweights - delta[..., None]) * scale
        dq[:, rows] = torch.einsum("bkgqs,bskh->bqkgh", dlogits, k_BLKH.to(wide)).flatten(2, 3)
        dk += torch.einsum("bkgqs,bqkgh->bskh", dlogits, q)
    return dq.to(q_BLNH.dtype), dk.to(k_BLKH.dtype), dv.to(v_BLKH.dtype)


def _logits(
    q_BLNH: Tensor, k_BLKH: Tensor, causal: bool, scale: float, bounds: tuple[int, ...] | None
) -> Iterator[tuple[slice, Tensor]]:
    """Bands of rows with their masked, scaled logits [B, K, N / K, rows, L'], in fp32 or fp64."""
    wide, kv_heads = torch.promote_types(q_BLNH.dtype, torch.float32), k_BLKH.shape[2]
    keys = k_BLKH.to(wide)
    for start in range(0, q_BLNH.shape[1], _ROWS):
        rows = slice(start, min(start + _ROWS, q_BLNH.shape[1]))
        q = q_BLNH[:, rows].to(wide).unflatten(2, (kv_heads, -1))
        logits = torch.einsum("bqkgh,bskh->bkgqs", q, keys) * scale
        mask = allowed(rows.start, rows.stop, keys.shape[1], causal, bounds, q.device)
        yield rows, logits.masked_fill(~mask, float("-inf"))
