"""Products of every kind that training makes, by this process's CPU: python -m tests.engine.products OUTPUT [widen]."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from megatron_ultralong.engine import cpu_products

DTYPES = (torch.bfloat16, torch.float32, torch.float64, torch.int64)


def factors(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """a [30, 40], b [40, 50], c [30, 50], v [50], and A, B, C, three of each."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((30, 40), (40, 50), (30, 50), (50,), (3, 30, 40), (3, 40, 50), (3, 30, 50))
    return tuple(torch.randn(shape, generator=generator).mul(10).to(torch.bfloat16).to(dtype) for shape in shapes)


def products(a: Tensor, b: Tensor, c: Tensor, v: Tensor, A: Tensor, B: Tensor, C: Tensor) -> dict[str, Tensor]:
    """Each by its name; all are one product and at most one sum."""
    found = {
        "mm": a @ b,
        "transposed": b.t() @ a.t(),
        "mm.out": torch.mm(a, b, out=torch.empty_like(c)),
        "mm.out, transposed": torch.mm(a, b, out=torch.empty_like(c.t()).t()),
        "mm.out, empty": torch.mm(a, b, out=a.new_empty(0)),
        "addmm": torch.addmm(c, a, b, beta=2, alpha=3),
        "addmm of a row": torch.addmm(v, a, b),
        "addmm_": c.clone().addmm_(a, b, beta=2, alpha=3),
        "addmm.out": torch.addmm(c, a, b, out=torch.empty_like(c)),
        "bmm": A @ B,
        "bmm.out": torch.bmm(A, B, out=torch.empty_like(C)),
        "baddbmm": torch.baddbmm(C, A, B),
        "baddbmm_": C.clone().baddbmm_(A, B, beta=2),
        "baddbmm.out": torch.baddbmm(C, A, B, out=torch.empty_like(C)),
        "einsum": torch.einsum("bik,bkj->bij", A, B),
        "none": a[:0] @ b,
        "no sum": a[:, :0] @ b[:0],
    }
    if a.is_floating_point():
        found["linear"] = torch.nn.functional.linear(A, b.t(), v)
        x, y = (z.clone().requires_grad_() for z in (a, b))
        (x @ y).backward(c)
        found |= {"grad of a": x.grad, "grad of b": y.grad}
    return found


if __name__ == "__main__":
    if sys.argv[2:] == ["widen"]:
        cpu_products.widen()
        cpu_products.widen()  # does nothing
    torch.save({dtype: products(*factors(dtype)) for dtype in DTYPES}, sys.argv[1])
