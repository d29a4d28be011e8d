"""The few kinds of mapping between Hugging Face tensors and megatron-core's: Copy, FusedQKV and GatedMLP.

Invariants: a rule's `merge` and `split` are inverse to each other bit for bit, and only move rows; nothing is
computed. Cost: one copy of one layer's fused tensor. Rotary pairs need no permutation: both sides rotate halves
(megatron-core with rotary_interleaved=False).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from megatron_ultralong.errors import UserError

Shape = tuple[int, ...]


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
            if not isinstance(value, int) or value < 1:
                raise UserError(f"config.json: {name} is {value!r}; give a positive integer.")
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
        if heads % dimensions.K:
            raise UserError(
                f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {dimensions.K}."
            )
        return dimensions

    def shape(self, axes: str) -> Shape:
        """`axes` such as "NH D" (rows x columns) as sizes: (N * H, D)."""
        sizes = {**dataclasses.asdict(self), "NH": self.N * self.H, "KH": self.K * self.H}
        return tuple(sizes[axis] for axis in axes.split())


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

    def merge(self, tensors: Sequence[torch.Tensor], dimensions: Dimensions) -> torch.Tensor:
        """One layer's Hugging Face tensors -> its megatron-core tensor."""
        raise NotImplementedError

    def split(self, tensor: torch.Tensor, dimensions: Dimensions) -> tuple[torch.Tensor, ...]:
        """The inverse of `merge`; the results may share memory with `tensor`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Copy(Rule):
    """The same tensor under another name."""

    def merge(self, tensors: Sequence[torch.Tensor], dimensions: Dimensions) -> torch.Tensor:
        """The tensor itself."""
        return tensors[0]

    def split(self, tensor: torch.Tensor, dimensions: Dimensions) -> tuple[torch.Tensor, ...]:
        """The tensor itself."""
        return (tensor,)


@dataclasses.dataclass(frozen=True)
class GatedMLP(Rule):
    """linear_fc1 = the gate's rows above the up projection's, whatever the tensor-parallel size."""

    def merge(self, tensors: Sequence[torch.Tensor], dimensions: Dimensions) -> torch.Tensor:
        """[F, D] gate and up -> [2 F, D]."""
        return torch.cat(tuple(tensors))

    def split(self, tensor: torch.Tensor, dimensions: Dimensions) -> tuple[torch.Tensor, ...]:
        """[2 F, D] -> gate and up."""
        return tensor.split(dimensions.F)


@dataclasses.dataclass(frozen=True)
class FusedQKV(Rule):
    """linear_qkv = K groups, each of N/K query heads, one key head and one value head; weights and biases."""

    def merge(self, tensors: Sequence[torch.Tensor], dimensions: Dimensions) -> torch.Tensor:
        """Rows of q [N H, ...], k [K H, ...] and v [K H, ...] -> [K (N/K + 2) H, ...]."""
        grouped = [tensor.reshape(dimensions.K, -1, *tensor.shape[1:]) for tensor in tensors]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    def split(self, tensor: torch.Tensor, dimensions: Dimensions) -> tuple[torch.Tensor, ...]:
        """[K (N/K + 2) H, ...] -> q, k and v."""
        queries = dimensions.N // dimensions.K * dimensions.H
        grouped = tensor.reshape(dimensions.K, -1, *tensor.shape[1:])
        return tuple(part.flatten(0, 1) for part in grouped.split((queries, dimensions.H, dimensions.H), dim=1))
