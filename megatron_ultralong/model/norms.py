"""RMSNorm as the layers have it, and the same by tiles, which keeps nothing: backward begins with the norm's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.engine import mcore


class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm with megatron-core's constructor; its weight is marked for sequence parallelism."""

    def __init__(self, config: mcore.TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class LateNorm(RMSNorm):
    """The last norm where the loss norms chunk by chunk: hidden states pass it as they are, `norm` norms them."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x

    def norm(self, x: Tensor) -> Tensor:
        """`x` normed."""
        return super().forward(x)


def norm_of(module: Any) -> torch.nn.RMSNorm | None:
    """`module`, or None where it is an identity."""
    return module if isinstance(module, torch.nn.RMSNorm) else None


def normed(norm: torch.nn.RMSNorm, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """`x` normed by `norm`, whatever its forward does; by another `weight` if one is given."""
    weight = norm.weight if weight is None else weight
    return torch.nn.functional.rms_norm(x, norm.normalized_shape, weight, norm.eps)


def norm_gradients(norm: torch.nn.RMSNorm, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the norm's input and weight, from its input and its output's gradient.

    The weight's is in its dtype, rounded once a call: for one in fp32 PyTorch leaves its fused kernel, and holds the
    input in fp32 several times.
    """
    with torch.enable_grad():
        x, weight = x.detach().requires_grad_(), norm.weight.detach().requires_grad_()
        out = normed(norm, x, weight)
    d_x, d_weight = torch.autograd.grad(out, (x, weight), grad)
    return d_x, d_weight
