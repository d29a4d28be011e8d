"""Attention over the sequence: a ring's buffers and accumulators, the exchange of heads around it, kernels' scratch.

Tensors alone, moment by moment; context_parallel/ring_memory.py bounds a call from above, scratch of a CPU's kernels
included.
"""

from __future__ import annotations

from megatron_ultralong.planning.memory_parts.live import Live
from megatron_ultralong.planning.memory_parts.share import Share


def kept_by_attention(s: Share) -> int:
    """Output and log-sum-exp: what selective recompute keeps of a layer beside its input."""
    return s.q + s.lse


def attention_forward(live: Live, s: Share) -> None:
    """From rotated queries, keys and values, which stay, to what backward needs beside or in place of them.

    With exchanged heads that is the exchanged queries, keys and values, the output before it is sent back, and the
    output itself; without, the output.
    """
    live.doing = "attention, forward"
    if s.ulysses > 1:
        _to_heads(live, s)
    _ring_forward(live, s)
    if s.ulysses > 1:
        _output_to_sequence(live, s)
    if s.reordered:
        live.take(s.q)  # in the order of rows


def attention_recalled(live: Live, s: Share) -> None:
    """The same where output and log-sum-exp are known: heads are exchanged again, nothing else."""
    live.doing = "exchange of heads, forward again"
    if s.ulysses > 1:
        _to_heads(live, s)
        _output_to_sequence(live, s)
    if s.reordered:
        live.take(s.q)


def attention_backward(live: Live, s: Share) -> None:
    """From the output's gradient [positions, N H], which it frees, to those of queries, keys and values.

    Frees also what `attention_forward` kept or left.
    """
    live.doing = "attention, backward"
    live.drop(s.q * ((s.ulysses > 1) + s.reordered))  # the output that the projection had of its own
    if s.ulysses > 1:
        live.take(s.q)  # cut by heads
        live.take(s.q)  # received
        live.drop(s.q)
        live.take(s.q)  # in the sequence's order
        live.drop(s.q)
        live.drop(s.q)
    ring_backward(live, s)
    live.drop(s.q + 2 * s.sent_kv + s.q + s.lse + s.q)  # q, k, v; output, log-sum-exp; its gradient
    if s.ulysses > 1:
        sent = s.q + 2 * s.sent_kv
        live.take(sent)  # cut by share
        live.take(sent)  # side by side
        live.drop(sent)
        live.take(sent)  # received
        live.drop(sent)
        live.take(s.q + 2 * s.kv)
        live.drop(2 * sent)


def _to_heads(live: Live, s: Share) -> None:
    sent = s.q + 2 * s.sent_kv
    if s.sent_kv > s.kv:
        live.take(2 * s.sent_kv)  # each key-value head as often as ranks attend with it
    live.take(sent)
    live.take(sent)
    live.drop(sent)
    live.take(sent)
    live.drop(sent)
    if s.sent_kv > s.kv:
        live.drop(2 * s.sent_kv)


def _output_to_sequence(live: Live, s: Share) -> None:
    live.take(s.q)  # cut by share
    live.take(s.q)  # side by side
    live.drop(s.q)
    live.take(s.q)  # received
    live.drop(s.q)
    live.take(s.q)
    live.drop(s.q)


def _ring_forward(live: Live, s: Share) -> None:
    """Output and log-sum-exp stay."""
    if s.ring == 1:
        live.take(s.q + s.lse)
        return
    live.take(_buffers(s))
    live.take(s.q + s.lse)
    wide = s.wide * s.q
    live.take(wide)  # the accumulator, where it is not the output itself
    live.drop(s.q if wide else 0)
    live.brief(s.q + 2 * s.lse)  # a block of all rows, and its share in folding
    live.take(s.q if wide else 0)
    live.drop(wide + _buffers(s))


def ring_backward(live: Live, s: Share) -> None:
    """Gradients of queries, keys and values stay."""
    live.scratch(s.q + 2 * s.sent_kv + kernel_scratch(s, True) + (_buffers(s) if s.ring > 1 else 0))
    if s.ring == 1:
        live.take(s.q + 2 * s.sent_kv)
        return
    live.take(_buffers(s))
    live.take(s.q + 2 * s.sent_kv)
    wide, gradients = s.wide * s.q, (s.wide or 1) * _buffers(s)
    live.take(wide)
    live.drop(s.q if wide else 0)
    live.take(gradients)  # of keys and values under way, in fp32
    block = max(s.q + s.sent_kv, s.q // 2 + 2 * s.sent_kv)  # all rows and half the keys, or the reverse
    live.brief(block + s.lse)
    live.scratch(block + kernel_scratch(s, False))
    if wide:
        live.brief(s.q + 2 * s.sent_kv)  # the result beside the last block's, on the first rank of all keys
        live.take(s.q)
    live.drop(wide + gradients + _buffers(s))


def _buffers(s: Share) -> int:
    """Keys and values that are at hand, and those that arrive."""
    return 4 * s.sent_kv


def kernel_scratch(s: Share, whole: bool) -> int:
    """What flash-attn 2, in PyTorch or beside it, asks for in backward of a block beside its results.

    In fp32 a sum of dq (several, if deterministic) and a number a row and head; where queries share keys, dk and dv a
    query head. Read in PyTorch's flash_api.cpp (mha_bwd), not measured, and taken for the other kernels too.

    Args:
        s: the rank's share.
        whole: the block has all rows and all keys; else all of the one and half of the other.
    """
    if not s.gpu or s.element == 4:
        return 0
    expanded = 2 * s.q if s.q != s.sent_kv else 0
    return 2 * s.q * s.dq_sums + s.lse + (expanded if whole else expanded // 2)
