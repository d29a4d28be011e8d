"""Block kernels on NVIDIA GPUs: PyTorch's flash and cuDNN operators, and flash-attn 2 and 3 where they are installed.

All return the natural log-sum-exp of the scaled logits and take a merged one in backward, so one may run forward and
another backward. Each takes bf16 or fp16 and head dimensions that 8 divides. Flash kernels take whole tensors, or rows
of documents one behind the other with their bounds: `_Rows` is either. Private functions of flash-attn are called
by position up to `causal`, which all releases from 2.7 on (of flash-attn 3: from its first with torch operators on)
agree in, and by name after it (tests/context_parallel/test_gpu_signatures.py).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.engine.device import to_device

_aten = torch.ops.aten
_Bounds = tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How a flash kernel is handed rows: [B, L, ...] as they are, or within documents as [B L, ...].

    Attributes:
        batch: B.
        cu_seqlens: int32 bounds of all documents of the batch, or None.
        longest: rows of the longest document, or of the queries and of the keys.
    """

    batch: int
    cu_seqlens: Tensor | None
    longest: tuple[int, int]

    @classmethod
    def of(cls, q_BLNH: Tensor, k_BLKH: Tensor, bounds: _Bounds) -> _Rows:
        """For these tensors."""
        batch = q_BLNH.shape[0]
        if bounds is None:
            return cls(batch, None, (q_BLNH.shape[1], k_BLKH.shape[1]))
        return cls(batch, *_bounds(bounds, batch, q_BLNH.device))

    @property
    def lengths(self) -> tuple[Any, ...]:
        """Bounds for queries and keys, and the longest of both."""
        return self.cu_seqlens, self.cu_seqlens, *self.longest

    def pack(self, *tensors_BL: Tensor) -> list[Tensor]:
        """Views where strides allow it."""
        return list(tensors_BL) if self.cu_seqlens is None else [x.flatten(0, 1) for x in tensors_BL]

    def unpack_lse(self, lse: Tensor) -> Tensor:
        """From the kernel's [B, N, L], or [N, B L] within documents."""
        return lse.transpose(1, 2) if self.cu_seqlens is None else lse.unflatten(1, (self.batch, -1)).permute(1, 2, 0)

    def pack_lse(self, lse_BLN: Tensor) -> Tensor:
        """The inverse, contiguous."""
        packed = lse_BLN.transpose(1, 2) if self.cu_seqlens is None else lse_BLN.permute(2, 0, 1).flatten(1)
        return packed.contiguous()


@functools.lru_cache(maxsize=64)  # all layers ask for the same
def _bounds(bounds: tuple[int, ...], batch: int, device: torch.device) -> tuple[Tensor, tuple[int, int]]:
    longest = max(stop - start for start, stop in itertools.pairwise(bounds))
    repeated = [0, *(b * bounds[-1] + stop for b in range(batch) for stop in bounds[1:])]
    return to_device(torch.tensor(repeated, dtype=torch.int32), device), (longest, longest)


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Empty tensors of the same shapes, contiguous."""
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors)


def torch_flash_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, bounds: _Bounds
) -> tuple[Tensor, Tensor]:
    """PyTorch's copy of flash-attn 2."""
    rows = _Rows.of(q, k, bounds)
    out, lse, *_ = _aten._flash_attention_forward(*rows.pack(q, k, v), *rows.lengths, 0.0, causal, False, scale=scale)
    return out.view(q.shape), rows.unpack_lse(lse)


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
    rows = _Rows.of(q, k, bounds)
    no_dropout = (torch.empty(shape, dtype=torch.uint64, device=q.device) for shape in ((2,), ()))
    dq, dk, dv = _aten._flash_attention_backward(
        *(*rows.pack(grad, q, k, v, out), rows.pack_lse(lse), *rows.lengths, 0.0, causal, *no_dropout), scale=scale
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
    rows = _Rows.of(q, k, bounds)
    run, lengths = package._flash_attn_forward, ()
    if bounds is not None:
        run, lengths = package._flash_attn_varlen_forward, rows.lengths
    out, lse, *_ = run(*rows.pack(q, k, v), *lengths, 0.0, scale, causal, **_NO_WINDOW, return_softmax=False)
    return out.view(q.shape), rows.unpack_lse(lse)


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
) -> tuple[Tensor, ...]:
    """Deterministic where torch.use_deterministic_algorithms is on."""
    package: Any = flash_attn(2)
    rows, found = _Rows.of(q, k, bounds), _like(q, k, v)
    run, lengths = package._flash_attn_backward, ()
    if bounds is not None:
        run, lengths = package._flash_attn_varlen_backward, rows.lengths
    run(
        *(*rows.pack(grad, q, k, v, out), rows.pack_lse(lse), *rows.pack(*found), *lengths, 0.0, scale, causal),
        **_NO_WINDOW,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return found


def flash_attn_3_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, bounds: _Bounds
) -> tuple[Tensor, Tensor]:
    """flash-attn 3 (Hopper)."""
    package: Any = flash_attn(3)
    rows = _Rows.of(q, k, bounds)
    cu_q, cu_k, longest_q, longest_k = rows.lengths if bounds is not None else [None] * 4
    # Between them: new keys and values, a second query, the output; lengths of new keys, lengths in use; pages and
    # rotary; factors of FP8.
    out, lse, *_ = package._flash_attn_forward(
        *(*rows.pack(q, k, v), *[None] * 4, cu_q, cu_k, *[None] * 3, longest_q, longest_k),
        *(*[None] * 6, *[None] * 3, scale, causal),
    )
    return out.view(q.shape), rows.unpack_lse(lse)


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
) -> tuple[Tensor, ...]:
    """Deterministic where torch.use_deterministic_algorithms is on."""
    package: Any = flash_attn(3)
    rows, found = _Rows.of(q, k, bounds), _like(q, k, v)
    cu_q, cu_k, longest_q, longest_k = rows.lengths if bounds is not None else [None] * 4
    # After the lengths in use, which are none, come the longest; what forward calls causal is is_causal in some.
    package._flash_attn_backward(
        *(*rows.pack(grad, q, k, v, out), rows.pack_lse(lse), cu_q, cu_k, None, None, longest_q, longest_k),
        *(*rows.pack(*found), scale, causal),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return found


_NO_WINDOW = {"window_size_left": -1, "window_size_right": -1, "softcap": 0.0, "alibi_slopes": None}
