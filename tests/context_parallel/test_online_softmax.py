"""Folding partial attention equals attention over all keys at once."""

import math

import torch

from megatron_ultralong.context_parallel import online_softmax


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
