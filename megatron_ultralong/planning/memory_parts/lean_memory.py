"""The memory-lean layer (parallel.head_groups), forward and backward, in the order in which the code makes and frees.

Over all positions there are the stream, attention's output, one group's queries, keys and values and, in backward, the
gradients of these and of all keys and values; all else is of a tile. Code: model/lean/.
"""

from __future__ import annotations

import dataclasses
import functools

from megatron_ultralong.planning.memory_parts import attention_memory
from megatron_ultralong.planning.memory_parts.live import Live
from megatron_ultralong.planning.memory_parts.norm_memory import kept_by_norm, norm_backward, norm_forward
from megatron_ultralong.planning.memory_parts.share import Share


@functools.lru_cache(maxsize=4096)
def group_of(s: Share) -> Share:
    """One group of heads, over all positions."""
    head = s.kv // s.kv_heads
    groups = s.head_groups
    return dataclasses.replace(
        s,
        q=s.q // groups.count,
        kv=head * groups.keys,
        sent_kv=head * max(groups.keys, s.ulysses),
        lse=s.lse // groups.count,
        reordered=False,
    )


@functools.lru_cache(maxsize=4096)
def tile_of(s: Share) -> Share:
    """All heads, at the positions of one tile."""
    names = ("stream", "whole", "q", "kv", "projected", "gate", "positions", "rows")
    return dataclasses.replace(s, **{name: round(getattr(s, name) * s.tile) for name in names})


def lean_forward(live: Live, s: Share, keep: bool) -> None:
    """Leaves the output and, with `keep`, attention's output and log-sum-exp; the input stays."""
    before = live.now
    _attend(live, s)
    live.doing = "output projection and MLP, forward"
    live.take(s.stream)
    t = tile_of(s)
    live.take(t.stream if s.tiles > 1 else 0)  # of the tile before
    _middle(live, t)
    live.drop(t.stream if s.tiles > 1 else 0)
    _gathered(live, t)
    _activate(live, t)
    live.drop((2 if t.fused_swiglu else 3) * t.gate)
    live.drop(t.whole if t.split else t.stream)
    live.take(t.whole)
    live.take(t.stream if t.split else 0)
    if keep:
        live.doing = "attention, kept"
        live.now = before + s.stream + s.q + s.lse
        live.brief(s.lse)  # the groups' in one
    live.now = before + s.stream + (s.q + s.lse if keep else 0)


def lean_backward(live: Live, s: Share, known: bool, ahead: int) -> None:
    """From the output's gradient to the input's, in its place; frees what was kept, and the input.

    Args:
        live: what there is.
        s: the rank's share.
        known: attention's output and log-sum-exp are there.
        ahead: bytes that are fetched for the layer below, and stay.
    """
    if not known:
        _attend(live, s)
    left = live.now - s.q - s.lse
    sums = s.weights_up + s.weights_down + s.weights_proj if s.own_sums else 0
    live.take(sums if s.element == 4 else 2 * sums)
    t = tile_of(s)
    live.doing = "MLP, backward"
    live.take(t.stream if s.tiles > 1 else 0)  # of the tile before
    _middle(live, t)
    live.drop(t.stream if s.tiles > 1 else 0)
    _mlp_backward(live, t)
    _side_by_side(live, t)
    live.take(t.whole if t.split else 0)
    _weight(live, s, s.weights_proj)
    live.now = left + s.q + s.lse + (sums if s.element == 4 else 2 * sums)
    live.take(t.stream)  # what was between attention and the MLP in the last tile
    several = s.head_groups.count > s.head_groups.sharing
    live.take(2 * s.kv if several else 0)  # made once the first heads' gradients are known
    _attention_backward(live, s)
    live.take(0 if several else 2 * s.kv)
    sums += s.weights_qkv if s.own_sums else 0
    live.take(ahead)
    _input_backward(live, s, t)
    live.now = left + ahead + (sums if s.element == 4 else 2 * sums)
    live.doing = "gradients of weights"
    live.take(s.weights_up + s.weights_down + s.weights_proj + s.weights_qkv if s.element == 2 and sums else 0)
    live.now = left + ahead - s.stream


def lean_embedding_forward(live: Live, s: Share) -> None:
    """Leaves the first layer's input; tile by tile, as the sequence is split."""
    live.doing = "embedding, forward"
    t = tile_of(s)
    live.take(s.stream)
    live.brief(t.whole + t.stream)


def lean_embedding_backward(live: Live, s: Share, table: int) -> None:
    """From the gradient of the first layer's input, which it frees; `table`: bytes of the embedding."""
    live.doing = "embedding, backward"
    t = tile_of(s)
    live.take(table * 4 // s.element)
    live.brief((3 if s.tiles > 1 else 2) * t.whole * 4 // s.element)  # widened, without others' rows; the tile before
    live.take(table if s.element == 2 else 0)
    live.drop(table * 4 // s.element + (table if s.element == 2 else 0) + s.stream)


def kept_by_lean(s: Share, keep: bool) -> int:
    """Bytes that `lean_forward` leaves beside the input and the output."""
    return s.q + s.lse if keep else 0


def _attend(live: Live, s: Share) -> None:
    """Leaves attention's output of all heads, and its log-sum-exp."""
    g = group_of(s)
    live.take(s.q)
    live.take(s.lse - g.lse)  # of the groups before
    before = live.now
    live.take(2 * g.kv)
    _project(live, s, g, 0)
    attention_memory.attention_forward(live, g)
    live.now = before + g.lse


def _project(live: Live, s: Share, g: Share, kept: int) -> None:
    """A group's queries, beside which there is room for its keys and values already, and `kept` bytes more."""
    live.doing = "projections of a group, forward"
    live.take(g.q + kept)
    t, q = tile_of(s), round(g.q * s.tile)
    projected = q + round(2 * g.kv * s.tile)
    tile = t.whole if t.split else t.stream
    before, several = live.now, s.tiles > 1
    live.take(projected + tile if several else 0)  # of the tile before
    _gathered(live, t)
    live.drop(tile if several else 0)
    live.take(projected)
    live.take(q if s.head_groups.keys > 1 else 0)  # queries side by side
    live.drop(projected if several else 0)
    live.take(q * (1 if s.gpu else 3))  # rotated
    live.now = before


def _gathered(live: Live, t: Share) -> None:
    """The normed tile, of all ranks; its rows need no gradient."""
    norm_forward(live, t)
    live.drop(kept_by_norm(t))
    if t.split:
        live.take(t.whole)
        live.drop(t.stream)


def _middle(live: Live, t: Share) -> None:
    """What lies between attention and the MLP, from attention's output."""
    _side_by_side(live, t)
    live.take(t.whole)
    live.drop(t.q)
    if t.split:
        live.take(t.stream)
        live.drop(t.whole)
    live.take(t.stream)
    live.drop(t.stream)


def _activate(live: Live, t: Share) -> None:
    """Gate and up, and silu(gate) x up; unfused also silu(gate)."""
    live.take(2 * t.gate)
    if not t.fused_swiglu:
        live.take(t.gate)
    live.take(t.gate)


def _mlp_backward(live: Live, t: Share) -> None:
    """Leaves the input's gradient."""
    _gathered(live, t)
    _activate(live, t)
    live.take(t.whole if t.split else 0)  # the output's gradient
    _weight(live, t, t.weights_down)
    live.take(t.gate)  # of the activated
    live.take(2 * t.gate)
    live.drop(0 if t.fused_swiglu else t.gate)
    if not t.fused_swiglu:
        live.take(t.gate)
        live.take(2 * t.gate)  # both side by side
        live.drop(2 * t.gate)
    live.drop((4 if t.fused_swiglu else 5) * t.gate + (t.whole if t.split else 0))
    _weight(live, t, t.weights_up)
    live.drop(t.whole if t.split else t.stream)
    live.take(t.whole)
    live.take(t.stream if t.split else 0)
    live.drop(t.whole if t.split else 0)
    live.drop(2 * t.gate)
    _norm_backward(live, t)


def _norm_backward(live: Live, t: Share) -> None:
    """A tile's norm again, and back: from its output's gradient to its input's."""
    norm_forward(live, t)
    norm_backward(live, t, 0)
    live.take(t.stream)  # of the input and the gradient, which stay, and the output, which goes


def _attention_backward(live: Live, s: Share) -> None:
    """One of the groups, when most is there; queries' gradients take the output's place."""
    g = group_of(s)
    before = live.now
    live.take(2 * g.kv)
    if s.head_groups.sharing > 1:  # what the groups before have found for the keys they share
        live.take(2 * g.kv * (s.wide or 1 if s.head_groups.sharing > 2 else 1))
    _project(live, s, g, (g.q + g.kv) if s.qk_norm else 0)
    t = tile_of(s)
    live.doing = "attention of a group, backward"
    live.take(g.q)
    live.brief((t.whole if t.split else 0) + round(g.q * s.tile))
    live.take(g.q + g.lse)  # as `attention_backward` has them of its own; here they lie in the whole
    live.drop(g.q + g.lse)
    _differentiate(live, g)
    live.now = before


def _differentiate(live: Live, g: Share) -> None:
    """The gradients of a group's queries, keys and values, beside these, the output and its gradient."""
    if g.ulysses > 1:
        sent = g.q + 2 * g.sent_kv
        copies = 2 * g.sent_kv if g.sent_kv > g.kv else 0
        live.take(copies)
        live.take(2 * sent)
        live.drop(sent)
        live.take(sent)
        live.drop(sent + copies)
        live.take(4 * g.q)  # the output and its gradient, sent and received
        live.drop(2 * g.q)
        live.take(2 * g.q)
        live.drop(2 * g.q)
    attention_memory.ring_backward(live, g)
    if g.ulysses > 1:
        live.drop(2 * g.q + sent)
        live.take(2 * sent)
        live.drop(sent)
        live.take(sent)
        live.drop(sent)
        live.take(g.q + 2 * g.kv)


def _input_backward(live: Live, s: Share, t: Share) -> None:
    """Through the projection of all heads and the norm, a tile at a time."""
    live.doing = "projections, backward"
    before, several = live.now, s.tiles > 1
    tile = t.whole if t.split else t.stream
    live.take(tile + t.projected + 2 * t.stream if several else 0)  # of the tile before
    _gathered(live, t)
    live.drop(tile if several else 0)
    _side_by_side(live, t)
    live.take(2 * t.kv if t.split else 0)
    live.take(t.projected)
    live.drop((t.projected if several else 0) + t.q + (2 * t.kv if t.split else 0))
    _weight(live, s, s.weights_qkv)
    live.take(t.whole)
    live.take(t.stream if t.split else 0)
    live.drop((t.stream if several else 0) + (t.whole if t.split else 0))
    _norm_backward(live, t)
    live.now = before


def _side_by_side(live: Live, t: Share) -> None:
    """All heads of a tile in one."""
    live.take(t.q if t.split else 0)  # a group's after another's
    live.take(t.q)
    live.drop(t.q if t.split else 0)


def _weight(live: Live, s: Share, weight: int) -> None:
    """A product that is added to a weight's gradient."""
    live.brief(0 if s.fused_gradients or s.element == 4 else weight)
