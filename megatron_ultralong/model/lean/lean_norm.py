"""RMSNorm by tiles: nothing is kept, so backward begins with the norm's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def norm_of(module: Any) -> torch.nn.RMSNorm | None:
    """`module`, or None where it is an identity."""
    return module if isinstance(module, torch.nn.RMSNorm) else None


def norm_gradients(norm: torch.nn.RMSNorm, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the norm's input and weight, from its input and its output's gradient."""
    with torch.enable_grad():
        x, weight = x.detach().requires_grad_(), norm.weight.detach().requires_grad_()
        out = torch.nn.functional.rms_norm(x, norm.normalized_shape, weight, norm.eps)
    d_x, d_weight = torch.autograd.grad(out, (x, weight), grad)
    return d_x, d_weight
