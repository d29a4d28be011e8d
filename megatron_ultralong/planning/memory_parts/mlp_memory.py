"""The gated MLP's tensors, whole or by tiles of the sequence, SwiGLU as one operator or as PyTorch's."""

from __future__ import annotations

from megatron_ultralong.planning.memory_parts.live import Live
from megatron_ultralong.planning.memory_parts.share import Share


def mlp_forward(live: Live, s: Share, every: bool, again: bool) -> None:
    """Leaves the output beside what is kept: all of it (`every`), or nothing where it is in tiles."""
    live.doing = "MLP, forward" + (" again" if again else "")
    if not s.tiles:
        _gate(live, s, s.gate, every)
        live.take(s.stream)
        if not every:
            live.drop(s.gate)
        return
    gate, out = int(s.gate * s.tile), int(s.stream * s.tile)
    before = live.now
    live.take(out * (s.tiles - 1))
    _gate(live, s, gate, False)
    live.take(out)
    live.now = before
    live.take(2 * s.stream)  # the tiles' outputs, and they in one
    live.drop(s.stream)


def mlp_backward(live: Live, s: Share) -> None:
    """From the output's gradient, which stays for the residual stream, to its input's; frees what was kept, and the
    input.
    """
    live.doing = "MLP, backward"
    if not s.tiles:
        _backward(live, s, s.gate, s.whole, s.stream)
        live.drop(s.stream)
        return
    gate, whole, out = int(s.gate * s.tile), int(s.whole * s.tile), int(s.stream * s.tile)
    before, several = live.now, s.tiles > 1
    live.take(out * (s.tiles - 1))
    if several:
        live.take(s.weights_up + s.weights_down)  # what the tiles before have found
    _gate(live, s, gate, True)
    live.brief(out)
    _backward(live, s, gate, whole, out, summed=several)
    live.now = before
    live.take(2 * s.stream)  # the tiles' gradients, and they in one
    live.drop(2 * s.stream)  # with the input


def _gate(live: Live, s: Share, gate: int, every: bool) -> None:
    """From the input to gate x up, which stays; what made it too, if `every`."""
    live.take(2 * gate)
    if s.fused_swiglu:
        live.take(gate)
        live.drop(0 if every else 2 * gate)
        return
    live.take(gate)  # of the gate
    live.take(gate)  # up, plus the offset of none
    live.take(gate)
    live.drop(0 if every else 4 * gate)


def _backward(live: Live, s: Share, gate: int, whole: int, out: int, summed: bool = False) -> None:
    """From the output's gradient to the input's; frees what `_gate` kept."""
    live.take(gate)
    _weight(live, s.weights_down, gate, summed)
    if s.fused_swiglu:
        live.take(2 * gate)
        live.drop(3 * gate)
    else:
        live.take(2 * gate)
        live.drop(3 * gate)
        live.take(gate)
        live.drop(gate + 2 * gate)
        live.take(2 * gate)
        live.drop(2 * gate)
    live.take(whole)
    if s.split:
        live.take(out)
    _weight(live, s.weights_up, 2 * gate + (whole if s.split else 0), summed)


def _weight(live: Live, weight: int, freed: int, summed: bool) -> None:
    """A weight's gradient, of which `freed` bytes were the last use; added to what tiles before found, if `summed`."""
    live.take(weight)
    live.drop(freed)
    if summed:
        live.brief(weight)
        live.drop(weight)
    live.drop(weight)
