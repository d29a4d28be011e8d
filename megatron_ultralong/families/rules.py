"""The few kinds of mapping between Hugging Face tensors and megatron-core's: Copy, FusedQKV and GatedMLP.

Invariant: a rule only moves rows; nothing is computed. So a rule *is* a list of spans (which rows of which Hugging
Face tensor lie where in megatron-core's), and conversion streams spans with a buffer of a few megabytes, whatever
a tensor's size. `merge` and `split` do the same to whole tensors, inverse to each other bit for bit. Rotary pairs
need no permutation: both sides rotate halves (megatron-core with rotary_interleaved=False).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron_ultralong.errors import UserError

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
_LARGEST = 10_000_000
_MOST_LAYERS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The sizes of a model that shapes are made of, read from config.json.

    Attributes:
        layers: decoder layers.
        V: vocabulary entries, without padding.
        D: hidden size.
        F: intermediate size of the MLP.
        N: query heads.
        K: key and value heads.
        H: head size.
    """

    layers: int
    V: int
    D: int
    F: int
    N: int
    K: int
    H: int

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> Dimensions:
        """Read the sizes from a config.json.

        Raises:
            UserError: a field is missing, not a positive integer, or query heads don't divide into groups.
        """

        def field(name: str, default: int | None = None) -> int:
            value = config.get(name)
            value = default if value is None else value
            if type(value) is not int or not 1 <= value <= _LARGEST:
                raise UserError(f"config.json: {name} is {value!r}; give an integer from 1 to {_LARGEST:,}.")
            return value

        width, heads = field("hidden_size"), field("num_attention_heads")
        dimensions = cls(
            layers=field("num_hidden_layers"),
            V=field("vocab_size"),
            D=width,
            F=field("intermediate_size"),
            N=heads,
            K=field("num_key_value_heads", heads),
            H=field("head_dim", width // heads),
        )
        if dimensions.layers > _MOST_LAYERS:
            raise UserError(f"config.json: num_hidden_layers is {dimensions.layers}; give at most {_MOST_LAYERS:,}.")
        if heads % dimensions.K:
            raise UserError(
                f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {dimensions.K}."
            )
        return dimensions

    def shape(self, axes: str) -> Shape:
        """`axes` such as "NH D" (rows x columns) as sizes: (N * H, D)."""
        sizes = {
            **dataclasses.asdict(self),
            "NH": self.N * self.H,
            "KH": self.K * self.H,
            "QKV": (self.N + 2 * self.K) * self.H,
            "2F": 2 * self.F,
        }
        return tuple(sizes[axis] for axis in axes.split())


@dataclasses.dataclass(frozen=True)
class Span:
    """Rows that lie together on both sides.

    Attributes:
        part: which of the rule's Hugging Face tensors, by number.
        start: its first row there.
        fused: its first row in megatron-core's tensor.
        rows: how many.
    """

    part: int
    start: int
    fused: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Rule:
    """One megatron-core tensor and the Hugging Face tensors whose rows make it up.

    Attributes:
        megatron: key in the checkpoint; a tensor of every layer has a layer axis prepended there.
        hf: names; "{layer}" stands for the layer's number.
        axes: one string of axes per name in `hf`, as `Dimensions.shape` reads them.
    """

    megatron: str
    hf: tuple[str, ...]
    axes: tuple[str, ...]

    @property
    def layered(self) -> bool:
        """True: one such tensor a layer. False: one in the model."""
        return "{layer}" in self.hf[0]

    @property
    def vocabulary(self) -> bool:
        """True: its rows are vocabulary entries, which a tensor-parallel model may pad."""
        return self.axes[0].startswith("V")

    def names(self, layer: int) -> tuple[str, ...]:
        """Hugging Face names of one layer's tensors."""
        return tuple(name.format(layer=layer) for name in self.hf)

    def shapes(self, dimensions: Dimensions) -> tuple[Shape, ...]:
        """Hugging Face shapes, in the order of `hf`."""
        return tuple(dimensions.shape(axes) for axes in self.axes)

    def fused_shape(self, dimensions: Dimensions) -> Shape:
        """Shape of one layer's megatron-core tensor: the rows of all, one above another."""
        shapes = self.shapes(dimensions)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def spans(self, dimensions: Dimensions) -> list[Span]:
        """Every row of every part, in the order of megatron-core's rows."""
        spans, fused = [], 0
        for part, start, rows in self.order(dimensions):
            spans.append(Span(part, start, fused, rows))
            fused += rows
        return spans

    def order(self, dimensions: Dimensions) -> list[tuple[int, int, int]]:
        """(part, first row, rows) in megatron-core's order; here: the parts one above another."""
        return [(part, 0, shape[0]) for part, shape in enumerate(self.shapes(dimensions))]

    def merge(self, tensors: Sequence[torch.Tensor], dimensions: Dimensions) -> torch.Tensor:
        """One layer's Hugging Face tensors -> its megatron-core tensor."""
        import torch

        return torch.cat([tensors[s.part][s.start : s.start + s.rows] for s in self.spans(dimensions)])

    def split(self, tensor: torch.Tensor, dimensions: Dimensions) -> tuple[torch.Tensor, ...]:
        """The inverse of `merge`."""
        import torch

        parts = []
        for number in range(len(self.hf)):
            own = sorted((s for s in self.spans(dimensions) if s.part == number), key=lambda s: s.start)
            parts.append(torch.cat([tensor[s.fused : s.fused + s.rows] for s in own]))
        return tuple(parts)


@dataclasses.dataclass(frozen=True)
class Copy(Rule):
    """The same tensor under another name; a gated MLP that Hugging Face stores fused is one ("2F D")."""


@dataclasses.dataclass(frozen=True)
class GatedMLP(Rule):
    """linear_fc1 = the gate's rows above the up projection's, whatever the tensor-parallel size."""


@dataclasses.dataclass(frozen=True)
class FusedQKV(Rule):
    """linear_qkv = K groups, each of N/K query heads, one key head and one value head; weights and biases.

    From q, k and v ([N H, ...], [K H, ...] twice), or from one tensor that has them one above another ("QKV ...").
    """

    def order(self, dimensions: Dimensions) -> list[tuple[int, int, int]]:
        """K times: a group's query rows, its key rows, its value rows."""
        N, K, H = dimensions.N, dimensions.K, dimensions.H
        group = N // K * H
        apart = len(self.hf) == 3
        places = [(0, 0, group), (1, 0, H), (2, 0, H)] if apart else [(0, 0, group), (0, N * H, H), (0, (N + K) * H, H)]
        return [(part, first + k * rows, rows) for k in range(K) for part, first, rows in places]
