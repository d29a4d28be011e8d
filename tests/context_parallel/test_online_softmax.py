"""Folding partial attention equals attention over all keys at once."""

import math

import pytest
import torch

from megatron_ultralong.context_parallel import fold_triton, online_softmax
from megatron_ultralong.engine import device
from tests.triton_kernels import compile_for_gpus


def partial(logits_QK, values_KH):
    lse_Q = logits_QK.logsumexp(-1)
    return (logits_QK.softmax(-1) @ values_KH)[None, :, None], lse_Q[None, :, None]


def test_folding_blocks_equals_one_softmax_in_any_order():
    torch.manual_seed(0)
    logits, values = torch.randn(5, 12, dtype=torch.float64) * 30, torch.randn(12, 4, dtype=torch.float64)
    whole, whole_lse = partial(logits, values)
    for order in ([0, 1, 2], [2, 0, 1]):
        out, lse = torch.zeros_like(whole), torch.full_like(whole_lse, float("-inf"))
        for block in order:
            keys = slice(4 * block, 4 * block + 4)
            online_softmax.fold(out, lse, *partial(logits[:, keys], values[keys]))
        torch.testing.assert_close(out, whole, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(lse, whole_lse, rtol=1e-13, atol=1e-13)


def test_logits_that_overflow_exp_are_no_nan():
    out, lse = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1), float("-inf"))
    for value, logit in ((1.0, 1e4), (3.0, 1e4), (7.0, -1e4)):
        online_softmax.fold(out, lse, torch.full((1, 1, 1, 1), value), torch.full((1, 1, 1), logit))
    assert out.item() == 2.0
    torch.testing.assert_close(lse, torch.full_like(lse, 1e4 + math.log(2)))


def parts(shape, dtype, heads_first):
    """An accumulator in fp32, a block whose log-sum-exp may lie heads first, rows without a key in either or both."""
    torch.manual_seed(0)
    B, L, N, _ = shape
    out, block = torch.randn(shape), torch.randn(shape).to(dtype)
    lse = torch.randn(shape[:3]) * 5
    block_lse = torch.randn(B, N, L).transpose(1, 2) * 5 if heads_first else torch.randn(shape[:3]) * 5
    lse[:, :3], block_lse[:, 1:5] = -torch.inf, -torch.inf
    return out, lse, block, block_lse


WAYS = {
    "whole tensors": online_softmax.fold_whole,
    "a few rows": online_softmax.fold,
    "Triton": fold_triton.fold,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(2, 300, 3, 24), (1, 64, 2, 128)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_fold_gives_the_same_to_fp32_rounding(monkeypatch, way, shape, dtype):
    if way == "Triton":
        interpreter = pytest.importorskip("triton.runtime.interpreter")
        monkeypatch.setattr(fold_triton, "_kernel", interpreter.InterpretedFunction(fold_triton._fold))
    for heads_first in (False, True):
        out, lse, *block = parts(shape, dtype, heads_first)
        exact, exact_lse = out.double(), lse.double()
        online_softmax.fold(exact, exact_lse, *block)
        WAYS[way](out, lse, *block)
        assert not torch.isnan(lse).any()
        torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=2**-19)  # an ulp of the largest, 17
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=4 * 2**-22)  # two roundings of 4


def test_the_triton_kernel_compiles_for_gpus():
    pytest.importorskip("triton")
    pointers = {"out": "*fp32", "lse": "*fp32", "block_out": "*bf16", "block_lse": "*fp32"}
    compile_for_gpus(fold_triton._kernel, pointers, {"ROWS": 16, "CHANNELS": 128})


def test_on_a_gpu_gradients_are_added_whole():
    total, block = torch.zeros(1, 600, 2, 8), torch.randn(1, 600, 2, 8).bfloat16()
    by_rows = total.clone()
    online_softmax.add(by_rows, block)
    with device.assume_gpu():
        online_softmax.add(total, block)
    assert torch.equal(total, by_rows) and torch.equal(total, block.float())
