"""Seconds of one layer on one rank, forward and backward, by part: products, attention, memory traffic, messages.

Each part is work over a rate of the hardware profile. What overlaps is said part by part: the ring's messages with its
blocks, a gradient's reduce-scatter with the product beside it, on devices that work while the process goes on; on a CPU
nothing overlaps, and each operator's launch adds to it. docs/planning.md has the formulas.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.context_parallel.head_groups import tile_rows
from megatron_ultralong.planning import messages
from megatron_ultralong.planning.flops import ModelShape
from megatron_ultralong.planning.hardware_profile import HardwareProfile, interpolated
from megatron_ultralong.planning.launches import launches_of_a_layer


class Seconds(dict[str, float]):
    """By part."""

    def plus(self, part: str, seconds: float) -> None:
        """Add to one part."""
        self[part] = self.get(part, 0.0) + seconds

    def add(self, others: Mapping[str, float], times: float = 1.0) -> None:
        """Add to all parts of `others`, so many times."""
        for part, seconds in others.items():
            self.plus(part, times * seconds)

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(self.values())


FORWARD, BACKWARD = 4, 10
"""Operations of attention's kernels a pair of a query and a key, a head and a channel."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Numbers that elementwise operators read and write a position, in units of the sizes named.

    Attributes:
        norm: of D, a norm, forward and backward.
        residual: of D, an addition to the residual stream.
        heads: of (N + K) H, rotating and splitting.
        gate: of F, silu and its product.
        exponentials: of F.
    """

    norm: tuple[float, float]
    residual: tuple[float, float]
    heads: tuple[float, float]
    gate: tuple[float, float]
    exponentials: tuple[float, float]


FUSED = Traffic(norm=(2, 4), residual=(3, 2), heads=(6, 6), gate=(3, 5), exponentials=(0, 0))
"""A GPU's: one kernel a norm, one for SwiGLU."""
IN_PARTS = Traffic(norm=(9, 18), residual=(3, 3), heads=(12, 14), gate=(5, 12), exponentials=(1, 1))
"""A CPU's: PyTorch's operators one by one."""


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """Of one microbatch.

    Attributes:
        forward: by part.
        backward: by part, without what is computed again.
        again: a forward pass in backward, by part: what recomputation adds.
    """

    forward: Seconds
    backward: Seconds
    again: Seconds


class RankWork:
    """The work of one rank's layers under one configuration.

    Args:
        shape: the model.
        config: the run.
        groups: whom this rank talks to.
        profile: the machine.
        document: mean length of the documents that attention is confined to; None: a sample is one.
    """

    def __init__(
        self,
        shape: ModelShape,
        config: RunConfig,
        groups: messages.Groups,
        profile: HardwareProfile,
        document: float | None = None,
    ) -> None:
        self.shape, self.config, self.groups, self.profile = shape, config, groups, profile
        parallel = config.parallel
        self.element = 2 if config.train.precision == "bf16" else 4
        self.tokens = config.padded_length // parallel.context * config.train.micro_batch_size
        self.split = self.tokens // (parallel.tensor if parallel.sequence_parallel else 1)
        self.document = min(document or config.padded_length, config.padded_length)
        self.traffic = FUSED if profile.asynchronous else IN_PARTS
        self.tensor = parallel.tensor
        heads = shape.heads // self.tensor, max(1, shape.kv_heads // self.tensor)
        self.heads, self.kv_heads = heads
        self.head_sizes = (heads[0] + 2 * heads[1]) * shape.head_dim
        rows = tile_rows(parallel.mlp_chunk, parallel.tensor if parallel.sequence_parallel else 1)
        self.tiles = -(-self.split // (rows * config.train.micro_batch_size)) if parallel.head_groups else 1

    # Rates

    def product(self, rows: float, inner: int, outer: int) -> float:
        """Seconds of a product of [rows, inner] and [inner, outer]."""
        widths = [one.width for one in self.profile.matmul]
        rate = interpolated(math.sqrt(inner * outer), widths, [one.rate for one in self.profile.matmul])
        return 2.0 * rows * inner * outer / rate

    def moved(self, count: float, size: float, total: float | None = None) -> float:
        """Seconds to move `count` numbers of `size` bytes; `total` bytes lie in one operator's tensors."""
        sizes = [one.size for one in self.profile.copy]
        rate = interpolated(total or count * size, sizes, [one.rate for one in self.profile.copy])
        return count * size / rate

    def message(self, kind: messages.Kind, payload: float, group: messages.Group) -> float:
        """Seconds of a collective."""
        return messages.seconds(self.profile, kind, payload, group)

    def hidden_behind(self, message: float, work: float) -> float:
        """What is left of a message that goes on beside so much work."""
        return max(0.0, message - work) if self.profile.asynchronous else message

    def launching(self, operators: float) -> Seconds:
        """On a CPU, where the process computes what it launches; a GPU's launches are counted by the step."""
        if self.profile.asynchronous:
            return Seconds()
        return Seconds(launches=operators * (self.profile.launch or 0.0))

    # Parts

    def layer(self) -> LayerTime:
        """Of one layer."""
        counts = launches_of_a_layer(self.config.parallel, self.tiles)
        mlp, projections = self._mlp(), self._projections()
        attention = [self._attention(way) for way in (FORWARD, BACKWARD)]
        elementwise = [self._elementwise(way) for way in (0, 1)]
        tensor = self._tensor_messages(projections + mlp)
        forward = Seconds(linear=projections + mlp, elementwise=elementwise[0], **tensor[0])
        forward.add(attention[0])
        backward = Seconds(linear=2 * (projections + mlp), elementwise=elementwise[1], **tensor[1])
        backward["gradient sums"] = self._weight_gradients()
        backward.add(attention[1])
        again = self._again(forward, attention[0], mlp)
        forward.add(self.launching(counts.forward))
        backward.add(self.launching(counts.backward))
        if again:
            again.add(self.launching(counts.again))
        return LayerTime(forward, backward, again)

    def _again(self, forward: Seconds, attention: Seconds, mlp: float) -> Seconds:
        """What backward computes a second time, and with tiles the MLP a third."""
        kind = self.config.parallel.recompute
        again = Seconds(forward) if kind != "none" else Seconds()
        if kind == "selective":
            again.add(attention, -1)
        if self.config.parallel.mlp_chunk:
            again.plus("linear", mlp)
            again.plus("elementwise", self._gate(0))
        return Seconds({part: seconds for part, seconds in again.items() if seconds > 0})

    def _projections(self) -> float:
        D = self.shape.hidden
        out = self.heads * self.shape.head_dim
        return self.product(self.tokens, D, self.head_sizes) + self.product(self.tokens, out, D)

    def _mlp(self) -> float:
        D, F = self.shape.hidden, self.shape.ffn // self.tensor
        return self.product(self.tokens, D, 2 * F) + self.product(self.tokens, F, D)

    def _elementwise(self, way: int) -> float:
        D, e, t = self.shape.hidden, self.element, self.traffic
        heads = (self.heads + self.kv_heads) * self.shape.head_dim
        norms = self.moved(2 * t.norm[way] * self.split * D, max(e, 4 if t is IN_PARTS else e), 8 * self.split * D)
        others = self.moved(2 * t.residual[way] * self.split * D, e, 3 * e * self.split * D)
        others += self.moved(t.heads[way] * self.tokens * heads, e, 2 * e * self.tokens * heads)
        return norms + others + self._gate(way)

    def _gate(self, way: int) -> float:
        """SwiGLU, of a tile at a time where there are tiles."""
        numbers = self.tokens * self.shape.ffn // self.tensor
        tile = min(self.tokens, self.config.parallel.mlp_chunk or self.tokens) * self.shape.ffn // self.tensor
        moved = self.moved(self.traffic.gate[way] * numbers, self.element, 3 * self.element * tile)
        return moved + self.traffic.exponentials[way] * numbers * (self.profile.exponential or 0.0)

    def _weight_gradients(self) -> float:
        """Adding a microbatch's to the buffers: in the product's own pass, or after it."""
        parallel, train = self.config.parallel, self.config.train
        numbers = self.shape.layer_weights / self.tensor
        wide = 4 if train.grad_reduce_in_fp32 else self.element
        fused = train.gradient_accumulation_fusion and not parallel.mlp_chunk and parallel.recompute != "selective"
        return self.moved(numbers, 2 * wide if fused else 2 * wide + 2 * self.element)

    def _tensor_messages(self, linear: float) -> tuple[dict[str, float], dict[str, float]]:
        """TP, forward and backward.

        With sequence parallelism two gathers and two scatters, and in backward two gathers of inputs more, of which all
        but two gathers go on beside products; without, two all-reduces each way.
        """
        if self.tensor == 1:
            return {}, {}
        payload, group = self.tokens * self.shape.hidden * self.element, self.groups.tensor
        name = "tensor-parallel messages"
        if not self.config.parallel.sequence_parallel:
            reduce = 2 * self.message("all_reduce", payload, group)
            return {name: reduce}, {name: self.hidden_behind(reduce, linear / 2)}
        gather = 2 * self.message("all_gather", payload, group)
        scatter = 2 * self.message("reduce_scatter", payload, group)
        beside = self.hidden_behind(gather, linear / 2) + self.hidden_behind(scatter, linear / 2)
        return {name: gather + scatter}, {name: gather + beside}

    def _attention(self, way: int) -> Seconds:
        """The blocks of a ring, what passes round beside them, folding, and the exchange of heads around it."""
        parallel, H = self.config.parallel, self.shape.head_dim
        u, r = parallel.ulysses, self.groups.ring.size
        batch = self.config.train.micro_batch_size
        local = self.tokens * u / batch
        heads, kv_heads = self.heads / u, max(1.0, self.kv_heads / u)
        pairs = min(local * r, self.document) / 2 * local * batch
        found = Seconds(attention=way * pairs * heads * H / self._kernel(way, min(local, self.document)))
        if r > 1:
            found.add(self._ring(way, local * batch, heads, kv_heads, found["attention"] / r))
        if u > 1:
            sent = self.tokens * H * self.element * (2 * self.heads + 2 * max(self.kv_heads, u))
            found["head exchange"] = 2 * self.message("all_to_all", sent / 2, self.groups.ulysses)
            found.plus("elementwise", self.moved(4 * sent / self.element, self.element))
        return found

    def _ring(self, way: int, rows: float, heads: float, kv_heads: float, block: float) -> Seconds:
        """Messages that outlast a block, r - 1 of them, and folding three quarters of the rows as often."""
        e, H, turns = self.element, self.shape.head_dim, self.groups.ring.size - 1
        if self.document < self.config.padded_length:  # only what crosses into the next share travels on
            turns = min(turns, math.ceil(self.document / max(1.0, rows)))
        sent = 2 * rows * kv_heads * H * (e if way == FORWARD else e + 4)
        left = self.hidden_behind(self.message("send", sent, self.groups.ring), block)
        numbers = 0.75 * rows * heads * H
        if way == BACKWARD:
            numbers += 2 * rows * kv_heads * H
        return Seconds({"ring messages": turns * left, "elementwise": turns * self.moved(numbers, 8 + e)})

    def _kernel(self, way: int, tokens: float) -> float:
        rates = self.profile.attention
        values = [one.forward if way == FORWARD else one.backward for one in rates]
        return interpolated(tokens, [one.tokens for one in rates], values)
