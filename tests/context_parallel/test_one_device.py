"""Kernels and the whole ring on one device, CPU or GPU, against plain attention in fp64.

On a GPU: make test-gpu; or this file alone, which needs PyTorch with CUDA and pytest, and nothing that is built.
"""

import itertools

import pytest
import torch

from megatron_ultralong.context_parallel import kernels, kernels_cpu, kernels_gpu, kernels_plain
from tests.context_parallel import one_device

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SCALE = 0.2


def inputs(device, dtype, rows, keys, heads, head_dim):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, rows, heads[0], head_dim), *[(2, keys, heads[1], head_dim)] * 2, (2, rows, heads[0], head_dim)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def plain(q, k, v, grad, causal, bounds):
    """out, dq, dk, dv in the inputs' dtype throughout: what plain PyTorch gives."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    groups = q.shape[2] // k.shape[2]
    scores = torch.einsum("bqnh,bknh->bnqk", q, k.repeat_interleave(groups, 2)) * SCALE
    mask = kernels_plain.allowed(0, q.shape[1], k.shape[1], causal, bounds, q.device)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    out = torch.einsum("bnqk,bknh->bqnh", weights, v.repeat_interleave(groups, 2))
    out.backward(grad)
    return out.detach(), q.grad, k.grad, v.grad


def error(a, exact):
    return ((a.double() - exact).norm() / exact.norm()).item()


def check(ours, given, causal, bounds):
    """Each of out, dq, dk, dv is at most twice as far from fp64 as plain PyTorch in the same dtype is."""
    exact = plain(*(x.double() for x in given), causal, bounds)
    theirs = plain(*given, causal, bounds)
    floor = 1e-13 if given[0].dtype == torch.float64 else 4 * torch.finfo(given[0].dtype).eps
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), ours, theirs, exact, strict=True):
        assert a.dtype == given[0].dtype
        assert error(a, c) <= 2 * error(b, c) + floor, (name, error(a, c), error(b, c))


KERNELS = [
    ("cpu", torch.float64, "PyTorch, CPU", kernels_cpu.forward, kernels_cpu.backward),
    ("cpu", torch.float32, "PyTorch, CPU", kernels_cpu.forward, kernels_cpu.backward),
    ("cpu", torch.bfloat16, "PyTorch, CPU", kernels_cpu.forward, kernels_cpu.backward),
    ("cpu", torch.float64, "plain", kernels_plain.forward, kernels_plain.backward),
    ("cuda", torch.float32, "plain", kernels_plain.forward, kernels_plain.backward),
    *(
        ("cuda", dtype, name, forward, backward)
        for dtype in (torch.bfloat16, torch.float16)
        for name, forward, backward in (
            ("flash", kernels_gpu.torch_flash_forward, kernels_gpu.torch_flash_backward),
            ("cuDNN", kernels_gpu.cudnn_forward, kernels_gpu.cudnn_backward),
            ("flash-attn 2", kernels_gpu.flash_attn_2_forward, kernels_gpu.flash_attn_2_backward),
            ("flash-attn 3", kernels_gpu.flash_attn_3_forward, kernels_gpu.flash_attn_3_backward),
        )
    ),
]
SHAPES = {
    "causal": (96, 96, True, None),
    "square": (96, 96, False, None),
    "few keys": (96, 33, False, None),
    "few rows": (17, 96, False, None),
    "documents": (96, 96, True, (0, 1, 6, 7, 64, 96)),
    "documents, not causal": (96, 96, False, (0, 31, 96)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "kernel",
    [pytest.param(k, id=f"{k[2]}, {k[0]}, {k[1]}", marks=[pytest.mark.gpu] * (k[0] == "cuda")) for k in KERNELS],
)
def test_a_kernel_is_as_near_as_plain_attention(kernel, shape):
    device, dtype, name, forward, backward = kernel
    rows, keys, causal, bounds = SHAPES[shape]
    if name.startswith("flash-attn") and kernels_gpu.flash_attn(int(name[-1])) is None:
        pytest.skip(f"{name} is not installed")
    if name == "cuDNN" and (bounds is not None or torch.cuda.get_device_capability() < (9, 0)):
        pytest.skip("cuDNN's kernel is used without documents, from compute capability 9.0 on")
    for heads, head_dim in (((4, 4), 64), ((8, 2), 128), ((4, 1), 32)):
        q, k, v, grad = inputs(device, dtype, rows, keys, heads, head_dim)
        out, lse = forward(q, k, v, causal, SCALE, bounds)
        assert lse.shape == q.shape[:3] and lse.dtype == torch.promote_types(dtype, torch.float32)
        check([out, *backward(grad, q, k, v, out, lse, causal, SCALE, bounds)], (q, k, v, grad), causal, bounds)


@pytest.mark.gpu
@pytest.mark.parametrize("documents", [False, True])
def test_backward_on_a_gpu_is_deterministic_on_request(documents):
    q, k, v, grad = inputs("cuda", torch.bfloat16, 512, 512, (8, 2), 128)
    bounds = (0, 100, 512) if documents else None
    torch.use_deterministic_algorithms(True)
    try:
        out, lse = kernels.forward(q, k, v, True, SCALE, bounds)
        first, second = (kernels.backward(grad, q, k, v, out, lse, True, SCALE, bounds) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


DOCUMENTS = {
    "one": (None, True),
    "odd": ((0, 5, 6, 61, 128), True),
    "on chunk borders": ((0, 32, 64, 128), True),
    "not causal": ((0, 77, 128), False),
}
DTYPES = {"cpu": (torch.float64, torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16)}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_ring_of_threads_equals_full_attention(device, documents, size):
    bounds, causal = DOCUMENTS[documents]
    for dtype, (heads, head_dim) in itertools.product(DTYPES[device], (((8, 2), 64), ((2, 1), 128))):
        given = inputs(device, dtype, 128, 128, heads, head_dim)
        ours = one_device.attend(*given, size=size, bounds=bounds, causal=causal, scale=SCALE)
        check(ours, given, causal, bounds)
