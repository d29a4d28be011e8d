"""One layer's tensors, forward and backward, in the order in which the code makes and frees them.

Each function begins where `Live` holds what was held before, and leaves what the code leaves. A layer's input and the
gradient that comes in are the caller's. Names of tensors are those of `Share`.
"""

from __future__ import annotations

from typing import Literal

from megatron_ultralong.planning.memory_parts import attention_memory, mlp_memory
from megatron_ultralong.planning.memory_parts.live import Live
from megatron_ultralong.planning.memory_parts.norm_memory import norm_backward, norm_forward
from megatron_ultralong.planning.memory_parts.share import Share

Keep = Literal["all", "nothing", "attention", "all again"]
"""What a forward keeps: all that backward needs, nothing but the layer's input, attention's results beside it; or all,
attention's results being known."""


def layer_forward(live: Live, s: Share, keep: Keep) -> None:
    """Leaves the output, and what is kept; the input stays."""
    every, again = keep in ("all", "all again"), keep == "all again"
    live.doing = "projections, forward" + (" again" if again else "")
    before = live.now
    norm_forward(live, s)
    _project(live, s, every)
    if again:
        attention_memory.attention_recalled(live, s)
    else:
        attention_memory.attention_forward(live, s)
    live.doing = "output projection, forward" + (" again" if again else "")
    live.take(s.stream)
    if not every:
        live.now = before + s.stream + (attention_memory.kept_by_attention(s) if keep == "attention" else 0)
    elif s.ulysses > 1:
        live.drop(s.q + 2 * s.kv)  # the exchanged ones are kept
    live.take(s.stream)  # the residual stream
    live.drop(s.stream)
    middle = live.now
    norm_forward(live, s)
    mlp_memory.mlp_forward(live, s, every, again)
    live.take(s.stream)
    live.drop(s.stream)
    if not every:
        live.drop(live.now - middle)  # the MLP's; of the stream's two tensors one stays, the output
    elif not s.gpu and s.element == 2:
        live.drop(s.stream)  # the stream between attention and MLP, which the norm has in fp32


def layer_backward(live: Live, s: Share, held: bool = False) -> None:
    """From the output's gradient to the input's, by what `layer_forward` kept, which it frees; the input too.

    `held`: the caller does not let go of the output's gradient meanwhile.
    """
    mlp_memory.mlp_backward(live, s)
    live.doing = "norm of the MLP, backward"
    norm_backward(live, s, s.stream)
    live.take(s.stream if held else 0)
    live.doing = "output projection, backward"
    live.take(s.q)
    live.brief(s.weights_proj)
    attention_memory.attention_backward(live, s)
    _project_backward(live, s)
    live.doing = "norm of attention, backward"
    norm_backward(live, s, s.stream)


def kept_by_layer(s: Share, keep: Keep) -> int:
    """Bytes that `layer_forward` leaves beside the input and the output."""
    live = Live()
    layer_forward(live, s, keep)
    return live.now - s.stream


def _project(live: Live, s: Share, every: bool) -> None:
    """Queries, keys and values, normed and rotated; what they were made from is freed where nothing needs it."""
    live.take(s.projected)
    if s.qkv_bias:
        live.take(s.projected)
        live.drop(s.projected)
    source = s.projected
    if s.gathered:
        live.take(s.gathered)
        live.drop(s.projected)
        source = s.gathered
    if s.regrouped:
        live.take(s.q)
        source += s.q
    if s.qk_norm:
        live.take(s.q + s.kv + s.head_rows)
        _rotate(live, s, s.q)
        _rotate(live, s, s.kv)
        live.drop(s.q + s.kv)
        return  # what norms are made from is kept, and the values with it
    live.take(s.kv)  # the values, so that nothing keeps the rest
    _rotate(live, s, s.q)
    _rotate(live, s, s.kv)
    live.drop(source)


def _rotate(live: Live, s: Share, size: int) -> None:
    """One operator on a GPU; else a product, exchanged halves and their product."""
    live.take(size)
    if not s.gpu:
        live.brief(2 * size)


def _project_backward(live: Live, s: Share) -> None:
    live.doing = "projections, backward"
    for size in (s.kv, s.q):
        live.take(size)
        if not s.gpu:
            live.brief(2 * size)
        live.drop(size)
    if s.qk_norm:
        live.brief(s.q)
    live.take(s.projected)
    live.drop(s.q + 2 * s.kv)
    if s.qk_norm:
        live.drop(s.projected + (s.q if s.regrouped else 0) + s.head_rows - s.kv)
    if s.gathered:
        live.brief(2 * s.gathered)
    live.take(s.whole)
    if s.split:
        live.take(s.stream)
    live.brief(s.weights_qkv)
    if s.split:
        live.drop(s.whole)
    live.drop(s.projected + s.stream)
