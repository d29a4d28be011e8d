"""Rings of threads over long sequences in bf16: at most twice as far from fp64 as PyTorch's flash kernel called once.

On a GPU 32K to 256K tokens; on a CPU the same code over few. The reference is plain products in fp64, by bands of rows.
"""

from __future__ import annotations

import pytest
import torch

from megatron_ultralong.context_parallel import kernels_plain
from tests.context_parallel import one_device
from tests.context_parallel.ring_ranks import flash_in_one_process, with_gradients

HEADS, KV_HEADS, HEAD_DIM = 2, 1, 128
SCALE = HEAD_DIM**-0.5


def assert_as_near_as_flash(ours: list[torch.Tensor], given: list[torch.Tensor]) -> None:
    """out, dq, dk and dv of causal attention to q, k, v and a gradient."""
    theirs = with_gradients(flash_in_one_process, *given)
    q, k, v, grad = (x.double() for x in given)
    out, lse = kernels_plain.forward(q, k, v, True, SCALE, None)
    exact = [out, *kernels_plain.backward(grad, q, k, v, out, lse, True, SCALE, None)]
    floor = torch.finfo(given[0].dtype).eps / 64  # of a norm over so many numbers
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), ours, theirs, exact, strict=True):
        own, allowed = (((x.double() - c).norm() / c.norm()).item() for x in (a, b))
        assert own <= 2 * allowed + floor, (name, own, allowed)


def drawn(device: str, length: int) -> list[torch.Tensor]:
    """q, k, v and the output's gradient in bf16."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, length, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return [torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes]


def on(device: str, length: int, size: int, *marks: pytest.MarkDecorator) -> object:
    return pytest.param(device, length, size, id=f"{device}, {length} on {size}", marks=marks)


@pytest.mark.parametrize(
    ("device", "length", "size"),
    [
        on("cpu", 1024, 4),
        on("cuda", 32 * 1024, 8, pytest.mark.gpu),
        on("cuda", 64 * 1024, 4, pytest.mark.gpu),
        on("cuda", 128 * 1024, 8, pytest.mark.gpu),
        on("cuda", 256 * 1024, 4, pytest.mark.gpu),
    ],
)
def test_a_long_ring_in_bf16_is_as_near_fp64_as_one_call_of_flash_attention(
    device: str, length: int, size: int
) -> None:
    given = drawn(device, length)
    assert_as_near_as_flash(one_device.attend(*given, size=size, scale=SCALE), given)
