"""A kernel's check before it is trusted: a small block against plain products, forward and backward.

It is held to the rule of all our kernels: at most twice as far from fp64 as plain PyTorch products in its own dtype
are. Costs three blocks of some hundred rows, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.context_parallel import kernels_plain

_ROWS, _KEYS = 320, 192  # no multiples of a kernel's tile
_BOUNDS = (0, 1, 100, 229, _ROWS)
_ALLOWED = 2.0
_NAMES = ("out", "log-sum-exp", "dq", "dk", "dv")


def problem(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    documents: bool,
) -> str | None:
    """What is wrong with a pair of functions as `kernels.forward` and `kernels.backward`; None: nothing.

    Args:
        heads: of queries, and of keys and values.
        documents: it takes bounds of documents.
    """
    cases: list[tuple[str, int, bool, tuple[int, ...] | None]] = [
        ("a causal square", _ROWS, True, None),
        ("a rectangle", _KEYS, False, None),
    ]
    if documents:
        cases.append(("documents", _ROWS, True, _BOUNDS))
    for what, keys, causal, bounds in cases:
        given = _block(keys, heads, head_dim, dtype, device)
        exact = _by_products([x.double() for x in given], causal, bounds)
        plain = _by_products(given, causal, bounds)
        merged = (exact[0].to(dtype), exact[1].to(torch.promote_types(dtype, torch.float32)))
        try:
            q, k, v, grad = given
            scale = head_dim**-0.5
            found = [*forward(q, k, v, causal, scale, bounds)]
            found += backward(grad, q, k, v, *merged, causal, scale, bounds)
            errors = [(_error(a, c), _error(b, c)) for a, b, c in zip(found, plain, exact, strict=True)]
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            return f"on {what} it fails with {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        for name, (own, allowed) in zip(_NAMES, errors, strict=True):
            if not own <= _ALLOWED * allowed:  # also where it is NaN
                return f"on {what} {name} is off by {own:.2g}, and plain products in {dtype} are by {allowed:.2g}"
    return None


def _block(
    keys: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """q, k, v and the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, rows, n, head_dim) for rows, n in ((_ROWS, heads[0]), *[(keys, heads[1])] * 2, (_ROWS, heads[0]))]
    return tuple(torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)


def _by_products(given: Any, causal: bool, bounds: tuple[int, ...] | None) -> tuple[Tensor, ...]:
    """out, log-sum-exp, dq, dk and dv in the tensors' own dtype throughout."""
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in given[:3])
        groups = q.shape[2] // k.shape[2]
        scores = torch.einsum("bqnh,bknh->bnqk", q, k.repeat_interleave(groups, 2)) * q.shape[-1] ** -0.5
        mask = kernels_plain.allowed(0, q.shape[1], k.shape[1], causal, bounds, q.device)
        scores = scores.masked_fill(~mask, float("-inf"))
        out = torch.einsum("bnqk,bknh->bqnh", scores.softmax(-1), v.repeat_interleave(groups, 2))
        gradients = torch.autograd.grad(out, (q, k, v), given[3])
    return out.detach(), scores.detach().logsumexp(-1).transpose(1, 2), *gradients


def _error(found: Tensor, exact: Tensor) -> float:
    """Distance relative to the exact value's size; NaN stays NaN."""
    if found.shape != exact.shape:
        raise ValueError(f"{list(found.shape)} where {list(exact.shape)} is due")
    return float((found.double() - exact).norm() / exact.norm())
