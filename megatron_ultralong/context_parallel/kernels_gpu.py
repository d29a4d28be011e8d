"""Block kernels on NVIDIA GPUs: PyTorch's flash and cuDNN operators, and flash-attn 2 and 3 where they are installed.

All return the natural log-sum-exp of the scaled logits and take a merged one in backward, so one may run forward and
another backward. Each takes bf16 or fp16 and head dimensions that 8 divides. Private functions of flash-attn are called
by position up to `causal`, which all releases from 2.7 on (of flash-attn 3: from its first with torch operators on)
agree in, and by name after it.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_Bounds = tuple[int, ...] | None


def _packed(bounds: tuple[int, ...], *tensors: Tensor) -> tuple[list[Tensor], Tensor, int]:
    """[B, L, ...] -> [B L, ...] each, int32 bounds over all of it, and the longest document."""
    batch, length = tensors[0].shape[:2]
    return [x.reshape(batch * length, *x.shape[2:]) for x in tensors], *_bounds(bounds, batch, tensors[0].device)


@functools.lru_cache(maxsize=64)  # all layers ask for the same
def _bounds(bounds: tuple[int, ...], batch: int, device: torch.device) -> tuple[Tensor, int]:
    longest = max(stop - start for start, stop in itertools.pairwise(bounds))
    repeated = [0, *(b * bounds[-1] + stop for b in range(batch) for stop in bounds[1:])]
    return torch.tensor(repeated, dtype=torch.int32, device=device), longest


def _like(x: Tensor) -> Tensor:
    """An empty tensor of the same shape, contiguous."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _lse_from_packed(lse_NT: Tensor, batch: int) -> Tensor:
    """[N, B L] -> [B, L, N]."""
    return lse_NT.unflatten(1, (batch, -1)).permute(1, 2, 0)


def _lse_to_packed(lse_BLN: Tensor) -> Tensor:
    return lse_BLN.permute(2, 0, 1).flatten(1).contiguous()


def torch_flash_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, bounds: _Bounds
) -> tuple[Tensor, Tensor]:
    """PyTorch's copy of flash-attn 2."""
    if bounds is None:
        out, lse, *_ = _aten._flash_attention_forward(
            q, k, v, None, None, q.shape[1], k.shape[1], 0.0, causal, False, scale=scale
        )
        return out, lse.transpose(1, 2)
    (q_TNH, k_TKH, v_TKH), cu, longest = _packed(bounds, q, k, v)
    out, lse, *_ = _aten._flash_attention_forward(
        q_TNH, k_TKH, v_TKH, cu, cu, longest, longest, 0.0, causal, False, scale=scale
    )
    return out.view(q.shape), _lse_from_packed(lse, q.shape[0])


def torch_flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    bounds: _Bounds,
) -> tuple[Tensor, Tensor, Tensor]:
    """Deterministic where torch.use_deterministic_algorithms is on, at the cost of several fp32 copies of dq."""
    no_dropout = (
        torch.empty(2, dtype=torch.uint64, device=q.device),
        torch.empty((), dtype=torch.uint64, device=q.device),
    )
    if bounds is None:
        return _aten._flash_attention_backward(
            *(grad, q, k, v, out, lse.transpose(1, 2).contiguous(), None, None, q.shape[1], k.shape[1]),
            *(0.0, causal, *no_dropout),
            scale=scale,
        )
    packed, cu, longest = _packed(bounds, grad, q, k, v, out)
    dq, dk, dv = _aten._flash_attention_backward(
        *(*packed, _lse_to_packed(lse), cu, cu, longest, longest, 0.0, causal, *no_dropout), scale=scale
    )
    return dq.view(q.shape), dk.view(k.shape), dv.view(v.shape)


def cudnn_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, bounds: _Bounds
) -> tuple[Tensor, Tensor]:
    """cuDNN's kernel, through PyTorch; without documents."""
    assert bounds is None
    out, lse_BNL1, *_ = _aten._scaled_dot_product_cudnn_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), None, True, 0.0, causal, False, scale=scale
    )
    return out.transpose(1, 2), lse_BNL1.reshape(out.shape[:3]).transpose(1, 2)


def cudnn_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    bounds: _Bounds,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds with atomics: not deterministic."""
    assert bounds is None
    unused = torch.empty((), dtype=torch.int64, device=q.device)
    gradients = _aten._scaled_dot_product_cudnn_attention_backward(
        *(x.transpose(1, 2) for x in (grad, q, k, v, out)),
        lse.transpose(1, 2).contiguous().unsqueeze(-1),
        *(unused, unused, None, None, None, q.shape[1], k.shape[1], 0.0, causal),
        scale=scale,
    )
    dq, dk, dv = (x.transpose(1, 2) for x in gradients)
    return dq, dk, dv


@functools.cache
def flash_attn(major: int) -> ModuleType | None:
    """The interface module of flash-attn 2 or 3, where it is installed and its CUDA part loads."""
    names = {2: ["flash_attn.flash_attn_interface"], 3: ["flash_attn_interface", "flash_attn_3.flash_attn_interface"]}
    for name in names[major]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):  # absent, or built for another torch
            continue
    return None


def flash_attn_2_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, bounds: _Bounds
) -> tuple[Tensor, Tensor]:
    """flash-attn 2.7 or newer."""
    package: Any = flash_attn(2)
    if bounds is None:
        out, lse, *_ = package._flash_attn_forward(q, k, v, 0.0, scale, causal, **_NO_WINDOW, return_softmax=False)
        return out, lse.transpose(1, 2)
    packed, cu, longest = _packed(bounds, q, k, v)
    out, lse, *_ = package._flash_attn_varlen_forward(
        *packed, cu, cu, longest, longest, 0.0, scale, causal, **_NO_WINDOW, return_softmax=False
    )
    return out.view(q.shape), _lse_from_packed(lse, q.shape[0])


def flash_attn_2_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    bounds: _Bounds,
) -> tuple[Tensor, Tensor, Tensor]:
    """Deterministic where torch.use_deterministic_algorithms is on."""
    package: Any = flash_attn(2)
    rest = {**_NO_WINDOW, "deterministic": torch.are_deterministic_algorithms_enabled()}
    found = _like(q), _like(k), _like(v)
    if bounds is None:
        lse_BNL = lse.transpose(1, 2).contiguous()
        package._flash_attn_backward(grad, q, k, v, out, lse_BNL, *found, 0.0, scale, causal, **rest)
        return found
    packed, cu, longest = _packed(bounds, grad, q, k, v, out)
    flat = [x.flatten(0, 1) for x in found]
    package._flash_attn_varlen_backward(
        *packed, _lse_to_packed(lse), *flat, cu, cu, longest, longest, 0.0, scale, causal, **rest
    )
    return found


def flash_attn_3_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, bounds: _Bounds
) -> tuple[Tensor, Tensor]:
    """flash-attn 3 (Hopper)."""
    package: Any = flash_attn(3)
    if bounds is None:
        out, lse, *_ = package._flash_attn_forward(q, k, v, softmax_scale=scale, causal=causal)
        return out, lse.transpose(1, 2)
    packed, cu, longest = _packed(bounds, q, k, v)
    lengths = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": longest, "max_seqlen_k": longest}
    out, lse, *_ = package._flash_attn_forward(*packed, **lengths, softmax_scale=scale, causal=causal)
    return out.view(q.shape), _lse_from_packed(lse, q.shape[0])


def flash_attn_3_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    bounds: _Bounds,
) -> tuple[Tensor, Tensor, Tensor]:
    """Deterministic where torch.use_deterministic_algorithms is on."""
    package: Any = flash_attn(3)
    deterministic = torch.are_deterministic_algorithms_enabled()
    found = _like(q), _like(k), _like(v)
    lengths: list[Any] = [None] * 6
    rows, lse_NL = [grad, q, k, v, out], lse.transpose(1, 2).contiguous()
    flat = list(found)
    if bounds is not None:
        rows, cu, longest = _packed(bounds, *rows)
        lengths, lse_NL, flat = (
            [cu, cu, None, None, longest, longest],
            _lse_to_packed(lse),
            [x.flatten(0, 1) for x in found],
        )
    # cu_seqlens q and k, lengths used of q and k, longest q and k; then what forward calls causal is is_causal in some.
    package._flash_attn_backward(*rows, lse_NL, *lengths, *flat, scale, causal, deterministic=deterministic)
    return found


_NO_WINDOW = {"window_size_left": -1, "window_size_right": -1, "softcap": 0.0, "alibi_slopes": None}
