"""An RMSNorm's tensors: PyTorch's fused operator on a GPU, its parts one by one on a CPU.

Fused, it keeps its input, a tensor that exists anyway, and a number a row. In parts it keeps, in fp32, its input (which
for fp32 is the tensor itself) and that input scaled.
"""

from __future__ import annotations

from megatron_ultralong.planning.memory_parts.live import Live
from megatron_ultralong.planning.memory_parts.share import Share


def kept_by_norm(s: Share) -> int:
    """Beside the output, and the input where it is fp32 or the norm fused."""
    if s.gpu:
        return 4 * s.rows
    return 4 * s.rows * s.width * (2 if s.element == 2 else 1)


def norm_forward(live: Live, s: Share) -> None:
    """Makes the output, and what is kept."""
    if s.gpu:
        live.take(s.stream + kept_by_norm(s))
        return
    wide = 4 * s.rows * s.width
    widened = wide if s.element == 2 else 0
    live.take(widened)
    live.brief(wide)  # the square
    live.take(wide)
    live.take(wide)
    if widened:
        live.take(s.stream)
        live.drop(wide)


def norm_backward(live: Live, s: Share, residual: int) -> None:
    """From the output's gradient to the input's, added to the residual stream's where there is one.

    Frees the output's gradient, what was kept and the input; makes the sum. `residual`: bytes of the stream's own
    gradient, which is freed too; 0: there is none.
    """
    if s.gpu:
        live.take(s.stream)
        live.drop(s.stream + kept_by_norm(s) + s.stream)
        if residual:
            live.take(s.stream)
            live.drop(s.stream + residual)
        return
    wide = 4 * s.rows * s.width
    grad = wide if s.element == 2 else s.stream
    if s.element == 2:
        live.take(wide)  # the gradient widened
        live.drop(s.stream)
    live.take(wide)  # of the scaled input
    live.brief(wide)  # of the weight, before it is summed
    live.drop(grad + wide)
    live.take(wide)  # of the input, by the scaling
    live.brief(wide)
    live.drop(wide)
    if residual and s.element == 4:
        live.take(s.stream)
        live.drop(s.stream + residual)
    live.take(4 * wide)  # of the mean of squares
    live.drop(3 * wide + wide)  # its input too
    live.take(wide)
    live.drop(2 * wide)
    if s.element == 2:
        live.take(s.stream)
        live.drop(wide)
        if residual:
            live.take(s.stream)
            live.drop(s.stream + residual)
