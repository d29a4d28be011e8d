"""Block kernels against the plain products that they stand for."""

import pytest
import torch

from megatron_ultralong.context_parallel import kernels, kernels_cpu, kernels_plain

BOUNDS = (0, 1, 4, 40, 130, 400, 529, 600)


def block(q_rows, k_rows, dtype=torch.float64, heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (2, rows, n, 16) for rows, n in ((q_rows, heads), (k_rows, kv_heads), (k_rows, kv_heads), (q_rows, heads))
    ]
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("q_rows", "k_rows", "causal", "bounds"),
    [
        (600, 600, True, None),
        (600, 600, True, BOUNDS),
        (600, 600, False, BOUNDS),
        (130, 600, False, None),
        (1, 7, False, None),
    ],
)
def test_cpu_kernel_equals_plain_products(q_rows, k_rows, causal, bounds):
    q, k, v, grad = block(q_rows, k_rows)
    out, lse = kernels_cpu.forward(q, k, v, causal, 0.3, bounds)
    plain_out, plain_lse = kernels_plain.forward(q, k, v, causal, 0.3, bounds)
    torch.testing.assert_close(out, plain_out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, plain_lse, rtol=1e-12, atol=1e-12)
    # A merged log-sum-exp, as in a ring: other keys have half of each row's weight, and add nothing to the output.
    merged = (out / 2, lse + torch.tensor(2.0).log())
    ours = kernels_cpu.backward(grad, q, k, v, *merged, causal, 0.3, bounds)
    plain = kernels_plain.backward(grad, q, k, v, *merged, causal, 0.3, bounds)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_plain_blocks_equal_whole_attention():
    q, k, v, grad = (x.requires_grad_() for x in block(600, 600))
    wanted = kernels.reference(q, k, v, 0.3, BOUNDS)
    wanted.backward(grad)
    out, lse = kernels_plain.forward(q.detach(), k.detach(), v.detach(), True, 0.3, BOUNDS)
    torch.testing.assert_close(out, wanted.detach(), rtol=1e-12, atol=1e-12)
    found = kernels_plain.backward(grad.detach(), *(x.detach() for x in (q, k, v)), out, lse, True, 0.3, BOUNDS)
    for a, b in zip(found, (q.grad, k.grad, v.grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("bounds", [None, BOUNDS])
def test_bf16_is_rounded_once_where_the_cpu_does_not_multiply_it(monkeypatch, bounds):
    """Errors are bf16's rounding of the results (2^-8 of them), and of fp32's sums, which is far less."""
    monkeypatch.setattr(kernels_cpu.cpu_products, "has_bf16", lambda: False)
    q, k, v, grad = block(600, 600, torch.bfloat16)
    exact = [x.double() for x in (q, k, v, grad)]
    out, lse = kernels_cpu.forward(q, k, v, True, 0.3, bounds)
    wanted = kernels_plain.forward(*exact[:3], True, 0.3, bounds)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.double(), wanted[0], rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(lse.double(), wanted[1], rtol=1e-6, atol=1e-6)
    ours = kernels_cpu.backward(grad, q, k, v, out, lse, True, 0.3, bounds)
    plain = kernels_plain.backward(exact[3], *exact[:3], out.double(), lse.double(), True, 0.3, bounds)
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b, rtol=2**-8, atol=1e-4)
