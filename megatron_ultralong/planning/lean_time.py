"""Seconds of one memory-lean layer (parallel.head_groups), by part: what differs from `layer_time`.

A group's projection is a product of its own; tiles are gathered anew for each group, and nothing goes on beside their
messages; backward projects queries, keys and values twice where it attends again, once where it knows the output, and
leaves out the MLP's second product. Each tile adds to the weights' gradients. Code: model/lean/.
"""

from __future__ import annotations

from megatron_ultralong.context_parallel.head_groups import HeadGroups
from megatron_ultralong.planning.layer_time import RankWork, Seconds

_COPIES = 4
"""Numbers of (N + K) H a position moved besides, each way: into a group's tensors, out of all heads' output."""


class LeanWork(RankWork):
    """As RankWork, of lean layers."""

    @property
    def groups_of_heads(self) -> int:
        """How many."""
        return self.config.parallel.head_groups

    def _group_projections(self) -> float:
        """Queries, keys and values of all groups, once."""
        return self.groups_of_heads * self.product(
            self.tokens, self.shape.hidden, self.head_sizes // self.groups_of_heads
        )

    def _projections(self) -> float:
        out = self.product(self.tokens, self.heads * self.shape.head_dim, self.shape.hidden)
        return self._group_projections() + out

    def _elementwise(self, way: int) -> float:
        D, e = self.shape.hidden, self.element
        heads = (self.heads + self.kv_heads) * self.shape.head_dim
        norms = self.moved((self.groups_of_heads - 1) * self.traffic.norm[0] * self.split * D, e)
        return super()._elementwise(way) + norms + self.moved(_COPIES * self.tokens * heads, e)

    def _attention(self, way: int) -> Seconds:
        """A group's, as often as there are groups: keys that several share travel with each."""
        whole = self.heads, self.kv_heads
        group = HeadGroups.of(*whole, self.groups_of_heads)
        self.heads, self.kv_heads = group.queries, group.keys
        one = super()._attention(way)
        self.heads, self.kv_heads = whole
        return Seconds({part: group.count * seconds for part, seconds in one.items()})

    def _again(self, forward: Seconds, attention: Seconds, mlp: float) -> Seconds:
        """All but the MLP's second product, and the groups' projections once more; where attention's output is kept,
        what lies behind it, and these.
        """
        D, F = self.shape.hidden, self.shape.ffn // self.tensor
        down = self.product(self.tokens, F, D)
        again = Seconds(forward)
        again.plus("linear", -down)
        if self.config.parallel.recompute == "selective":
            again.add(attention, -1)
        else:
            again.plus("linear", self._group_projections())
        self._add_messages(again)
        return Seconds({part: seconds for part, seconds in again.items() if seconds > 0})

    def _add_messages(self, again: Seconds) -> None:
        """In place of forward's: of a tile's gathers, one a group, once or twice; one sum over the ranks."""
        name = "tensor-parallel messages"
        if name in again:
            passes = 2 if self.config.parallel.recompute == "full" else 1
            again[name] = self._gathers_and_sums(passes * self.groups_of_heads, 1)

    def _tensor_messages(self, linear: float) -> tuple[dict[str, float], dict[str, float]]:
        """Forward a gather a group and one for the MLP, and two sums; backward a gather a group and four, two sums."""
        if self.tensor == 1:
            return {}, {}
        name, groups = "tensor-parallel messages", self.groups_of_heads
        return {name: self._gathers_and_sums(groups + 1, 2)}, {name: self._gathers_and_sums(groups + 4, 2)}

    def _gathers_and_sums(self, gathers: int, sums: int) -> float:
        """Of all positions, tile by tile."""
        payload = self.tokens * self.shape.hidden * self.element / self.tiles
        group = self.groups.tensor
        if not self.config.parallel.sequence_parallel:
            return self.tiles * sums * self.message("all_reduce", payload, group)
        gather, scatter = (self.message(kind, payload, group) for kind in ("all_gather", "reduce_scatter"))
        return self.tiles * (gathers * gather + sums * scatter)

    def _weight_gradients(self) -> float:
        return self.tiles * self.moved(self.shape.layer_weights / self.tensor, 2 * 4)  # of sums in fp32
