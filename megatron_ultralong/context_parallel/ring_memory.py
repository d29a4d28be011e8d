"""What a call of ring attention holds beside its inputs and results: the formula, for plans and for the tests.

Pure arithmetic. Nothing in it depends on the number of ranks: a longer ring makes each share shorter, and holds no more
of them at a time.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RingMemory:
    """Bytes on one rank, beyond q, k, v and what the call returns.

    Attributes:
        forward: at the peak of the forward pass.
        backward: at the peak of the backward pass, beyond also the gradient that comes in and what was saved.
        saved: kept from forward to backward beside q, k, v and the output: the log-sum-exp.
    """

    forward: int
    backward: int
    saved: int


def ring_memory(
    *, batch: int, local_length: int, heads: int, kv_heads: int, head_dim: int, bytes_per_element: int, cp_size: int
) -> RingMemory:
    """Peak extra memory of one `ring_attention` call.

    Forward: two buffers of keys and values, the fp32 output, its log-sum-exp, one block's output with its own, and in
    folding the block in its share of each row, as large as the log-sum-exp (a CPU's few rows, which are less, and what
    a Triton kernel does without are counted so too).
    Backward: two buffers of keys and values, two of their gradients in fp32, dq in fp32, one block's dq, dk and dv.
    For cp 1 the kernel's results are the call's: nothing but the log-sum-exp.

    Args:
        local_length: L = S / cp, tokens that the rank holds.
        bytes_per_element: of q, k and v: 2 for bf16, 4 for fp32, 8 for fp64.
    """
    wide = max(bytes_per_element, 4)
    q = batch * local_length * heads * head_dim
    kv = 2 * batch * local_length * kv_heads * head_dim
    lse = batch * local_length * heads * wide
    if cp_size == 1:
        return RingMemory(forward=lse, backward=0, saved=lse)
    # The result in q's dtype is made when the last block's output is gone; in fp32 the accumulator is the result.
    block = q * bytes_per_element + lse
    accumulator = q * wide if bytes_per_element < wide else 0
    return RingMemory(
        forward=2 * kv * bytes_per_element + accumulator + 2 * lse + block,
        backward=2 * kv * (bytes_per_element + wide) + accumulator + (q + kv) * bytes_per_element,
        saved=lse,
    )
