"""One pipeline stage's step: its layers forward and backward between embedding and loss, with microbatches in flight.

A stage keeps what its forward passes left until their backward. Under 1F1B that is, on stage s of p, at most p - s
microbatches; the highest point is one of them going forward or backward while the others wait. Layers of one kind
leave the same, so that only the last of each kind is gone through.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from megatron_ultralong.planning.memory_parts.attention_memory import attention_forward
from megatron_ultralong.planning.memory_parts.head_memory import (
    embedding_backward,
    embedding_forward,
    kept_by_loss,
    loss_of,
)
from megatron_ultralong.planning.memory_parts.layer_memory import Keep, kept_by_layer, layer_backward, layer_forward
from megatron_ultralong.planning.memory_parts.lean_memory import (
    group_of,
    kept_by_lean,
    lean_backward,
    lean_embedding_backward,
    lean_embedding_forward,
    lean_forward,
)
from megatron_ultralong.planning.memory_parts.live import Live
from megatron_ultralong.planning.memory_parts.norm_memory import norm_backward, norm_forward
from megatron_ultralong.planning.memory_parts.share import Share


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage is and keeps.

    Attributes:
        layers: of it.
        recompute: parallel.recompute.
        recomputed: its first so many layers are.
        offload: layer inputs are in the host's memory.
        first: it has the embedding.
        last: it has the head and the loss.
        flying: microbatches that wait for their backward, at most.
        steady: there are more of them, which go forward when another has come back.
        tensor: tensor-parallel ranks.
        vocabulary: V / tp.
        tied: the head is this stage's embedding, whose gradient waits for that of both.
        loss_chunk: train.loss_chunk.
    """

    layers: int
    recompute: Literal["none", "selective", "full"]
    recomputed: int
    offload: bool
    first: bool
    last: bool
    flying: int
    steady: bool
    tensor: int
    vocabulary: int
    tied: bool
    loss_chunk: int


@dataclasses.dataclass(frozen=True)
class StageMemory:
    """Bytes of one stage's activations; see `planning.memory.StepMemory`."""

    activations: int
    attention: int
    loss: int
    peak: int
    moment: str
    kept: int
    with_scratch: int
    host: int


@functools.lru_cache(maxsize=4096)
def stage_memory(s: Share, stage: Stage) -> StageMemory:
    """Of a step's forward and backward; the update is not among it."""
    live, attending = Live(), Live()
    if stage.flying > 1:
        waiting = _step(Live(), s, dataclasses.replace(stage, steady=False))
        live.take((stage.flying - 1) * (waiting - (s.stream if s.gpu and not stage.last else 0)))  # outputs are sent
    activations = _step(live, s, stage)
    attention_forward(attending, group_of(s) if s.head_groups.count else s)
    return StageMemory(
        activations=activations,
        attention=attending.top,
        loss=_loss(s, stage),
        peak=live.top,
        moment=live.at,
        kept=live.kept_at,
        with_scratch=live.with_scratch,
        host=_away(s, _kinds(stage)[0][0]) * stage.recomputed * stage.flying if stage.offload and s.gpu else 0,
    )


def _step(live: Live, s: Share, stage: Stage) -> int:
    """A microbatch forward and backward; returns what is held between the two."""
    away = stage.offload and s.gpu
    kinds = _kinds(stage)
    # Of the microbatch before, megatron-core's schedule still holds the gradients it received and sent, and its input.
    sent = s.stream if stage.steady and not stage.first else 0
    received = s.stream if stage.steady and not stage.last else 0
    live.take(2 * sent + received)
    live.take(s.stream if away and not stage.first else 0)  # what was received, though the layer's input is away
    if stage.first:
        if s.head_groups.count and s.split:
            lean_embedding_forward(live, s)
        else:
            embedding_forward(live, s)
        live.take(s.stream if away else 0)  # what the model's forward holds, though the layer's input is away
    else:
        live.take(s.stream)  # received
    for keep, layers in kinds:
        left = _left(s, keep, away)
        live.take((layers - 1) * left)
        live.kept = live.now - s.stream
        _forward(live, s, keep)
        live.drop(s.stream + _kept(s, keep) - left)
    live.kept = live.now - s.stream
    if stage.last:
        if not s.head_groups.count:
            norm_forward(live, s)
        live.doing = "loss"
        live.brief(_loss(s, stage))
        live.take(kept_by_loss(s.rows, s.width, stage.vocabulary, s.element))
        live.drop(s.stream)  # the normed output; of lean layers the input, which the loss norms
        live.drop(s.stream if not s.head_groups.count and (away or not _needs_input(s)) else 0)
    live.drop(s.stream if away and stage.first else 0)
    held = live.now
    live.drop(sent + received)
    live.kept = live.now
    _start_backward(live, s, stage, away)
    for keep, layers in reversed(kinds):
        _layer_again_and_back(live, s, keep, away, layers)
        live.drop((layers - 1) * _left(s, keep, away))
        live.kept = live.now
    if stage.first:
        table = stage.vocabulary * s.width * s.element
        if s.head_groups.count and s.split:
            lean_embedding_backward(live, s, table)
        else:
            embedding_backward(live, s, stage.tensor, table)
        live.drop(table if stage.tied else 0)
    live.drop(sent + (s.stream if away and not stage.first else 0))
    return held


def _forward(live: Live, s: Share, keep: Keep) -> None:
    if s.head_groups.count:
        lean_forward(live, s, keep == "attention")
    else:
        layer_forward(live, s, keep)


def _kept(s: Share, keep: Keep) -> int:
    """Beside the input and the output."""
    return kept_by_lean(s, keep == "attention") if s.head_groups.count else kept_by_layer(s, keep)


def _kinds(stage: Stage) -> list[tuple[Keep, int]]:
    """What layers keep, and how many do, in the order of forward."""
    recomputed: Keep = "nothing" if stage.recompute == "full" else "attention"
    kinds: list[tuple[Keep, int]] = [(recomputed, stage.recomputed), ("all", stage.layers - stage.recomputed)]
    return [(keep, count) for keep, count in kinds if count]


def _left(s: Share, keep: Keep, away: bool) -> int:
    """What a layer leaves: what it keeps, and its input where something needs that."""
    if s.head_groups.count and away:
        return 0
    if keep != "all":
        return _kept(s, keep) + (0 if away else s.stream)
    offloaded = 4 * s.stream if away else 0  # inputs of norms and of column-parallel layers
    return kept_by_layer(s, keep) + (s.stream if _needs_input(s) else 0) - offloaded


def _away(s: Share, keep: Keep) -> int:
    """What a layer leaves in the host's memory."""
    return s.stream + (kept_by_lean(s, keep == "attention") if s.head_groups.count else 0)


def _needs_input(s: Share) -> bool:
    """Whether a norm keeps its input itself, and not a copy in fp32."""
    return s.gpu or s.element == 4


def _loss(s: Share, stage: Stage) -> int:
    return loss_of(s, stage.vocabulary, stage.loss_chunk, stage.tensor if s.split else 1) if stage.last else 0


def _start_backward(live: Live, s: Share, stage: Stage, away: bool) -> None:
    """To the gradient of the last layer's output."""
    if not stage.last:
        live.drop(s.stream if s.gpu else 0)  # the output, once it is sent
        live.take(s.stream)  # its gradient
        return
    live.doing = "loss, backward"
    head = stage.vocabulary * s.width
    live.take(head * s.element if s.element == 2 else 0)
    live.drop(4 * head if s.element == 2 or not stage.tied else 0)
    live.drop(head * s.element if s.element == 2 and not stage.tied else 0)
    if s.head_groups.count:
        return
    live.take(2 * s.stream if away else 0)  # the last norm's input, and the next to come
    norm_backward(live, s, 0)
    live.drop(s.stream if away else 0)


def _layer_again_and_back(live: Live, s: Share, keep: Keep, away: bool, layers: int) -> None:
    """Backward of the last of so many layers, from its output's gradient to its input's; frees what it left."""
    if keep == "all":
        live.take(4 * s.stream if away else 0)
        layer_backward(live, s)
        return
    if s.head_groups.count:
        fetched = _away(s, keep) if away else 0
        live.take(fetched)
        ahead = fetched if layers > 1 else 0
        lean_backward(live, s, keep == "attention", ahead)
        live.drop(ahead)
        return
    live.take((2 if layers > 1 else 1) * s.stream if away else 0)
    if keep == "nothing":
        layer_forward(live, s, "all")
        layer_backward(live, s, held=True)
        live.drop(2 * s.stream)  # the output, and its gradient
    else:
        layer_forward(live, s, "all again")
        live.drop(s.stream)
        layer_backward(live, s)
    live.drop((s.stream if away and layers > 1 else 0) + (0 if _needs_input(s) else s.stream))
