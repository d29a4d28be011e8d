"""Where two models part: inputs and outputs of every mapped module, in transformers' model and in megatron-core's.

The name table says which modules belong together, and its spans which output rows; so a difference is traced to the
layer and the tensor, or to the arithmetic between two tensors (rope, mask, activation). Values are kept at a few
positions only, so a trace of an 8B model takes 250 MB beside the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from megatron_ultralong.convert.folding import QueryFold
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.families.rules import Rule
from megatron_ultralong.families.tables import EMBEDDING
from megatron_ultralong.model.build import SAVED_NAMES

POSITIONS = 32
APART = 1e-3
"""Of a module's largest value: fp32 rounding stays below 1e-4 of it at moderate lengths and depths."""
_BETWEEN = {
    "self_attention.linear_proj.weight": "attention (rope, mask or scale)",
    "mlp.linear_fc2.weight": "the MLP's activation",
}

Place = tuple[Rule, int]


@dataclasses.dataclass
class Trace:
    """Inputs and outputs of one model's modules at some positions, in the order of the forward pass.

    Attributes:
        positions: int64 [P], those that are kept.
        inputs: by (key, layer, part): [P, features].
        outputs: likewise.
    """

    positions: torch.Tensor
    inputs: dict[tuple[str, int, int], torch.Tensor] = dataclasses.field(default_factory=dict)
    outputs: dict[tuple[str, int, int], torch.Tensor] = dataclasses.field(default_factory=dict)

    def hook(self, key: tuple[str, int, int], length: int) -> Callable[..., None]:
        """A forward hook that keeps what goes in and comes out."""

        def keep(module: torch.nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            del module
            result = output[0] if isinstance(output, tuple) else output
            self.outputs[key] = self._kept(result, length)
            if arguments and arguments[0].is_floating_point():
                self.inputs[key] = self._kept(arguments[0], length)

        return keep

    def _kept(self, value: torch.Tensor, length: int) -> torch.Tensor:
        axis = 0 if value.shape[0] == length else 1  # megatron-core: sequence first; transformers: batch first
        return value.index_select(axis, self.positions).reshape(len(self.positions), -1).clone()


def spread(length: int) -> torch.Tensor:
    """Up to POSITIONS positions over a sequence, the last among them."""
    return torch.linspace(0, length - 1, min(POSITIONS, length)).round().long()


def follow_transformers(model: torch.nn.Module, table: Table, trace: Trace, length: int) -> None:
    """Hook the modules of a transformers model that the table names."""
    for rule, layer in _places(table):
        for part, name in enumerate(rule.names(layer)):
            module = model.get_submodule(name.removesuffix(".weight"))
            module.register_forward_hook(trace.hook((rule.megatron, layer, part), length))


def follow_megatron(model: torch.nn.Module, table: Table, trace: Trace, length: int) -> None:
    """Hook the modules of a megatron-core model (all layers on this rank) that the table names."""
    for rule, layer in _places(table):
        name = rule.megatron
        for own, saved in SAVED_NAMES.items():
            name = name.replace(saved, own)
        name = name.replace("decoder.layers.", f"decoder.layers.{layer}.")
        module = model.get_submodule(name.removesuffix(".weight"))
        module.register_forward_hook(trace.hook((rule.megatron, layer, 0), length))


def _places(table: Table) -> list[Place]:
    """Every weight that is a module's; the output layer apart, whose outputs are the logits."""
    skipped = ("bias", "output_layer.weight")
    return [(rule, layer) for rule, layer in table.pieces() if not rule.megatron.endswith(skipped)]


def part(table: Table, fold: QueryFold, theirs: Trace, ours: Trace) -> str | None:
    """The first place at which the models part, in words that name the tensors; None: nowhere.

    `fold` is what transformers' queries hold and megatron-core's don't.
    """
    rules = {rule.megatron: rule for rule in table.rules}
    biased = {rule.megatron.removesuffix(".bias") for rule in table.rules if rule.megatron.endswith(".bias")}
    for key, layer, _ in ours.outputs:
        rule = rules[key]
        place = f"layer {layer}" if rule.layered else "the model"
        own = (key, layer, 0)
        if own in ours.inputs and _apart(theirs.inputs[own], ours.inputs[own]).any():
            between = next((what for suffix, what in _BETWEEN.items() if key.endswith(suffix)), "what comes before it")
            return f"{place}: {between}; {', '.join(rule.names(layer))} gets other input, all weights before agree"
        outputs = [theirs.outputs[key, layer, number] for number in range(len(rule.hf))]
        wrong = _wrong_parts(rule, table, outputs, _folded(fold, rule, table, ours.outputs[own]))
        if wrong:
            also = " or its bias" if key.removesuffix(".weight") in biased else ""
            names = ", ".join(rule.names(layer)[number] for number in wrong)
            return f"{place}: {names}{also} ({key}) gives another output for the same input"
    return None


def _folded(fold: QueryFold, rule: Rule, table: Table, output: torch.Tensor) -> torch.Tensor:
    """megatron-core's output with the factors of an export's rows."""
    scales = [fold.scale(rule, number, table.dimensions) for number in range(len(rule.hf))]
    if all(scale is None for scale in scales):
        return output
    shapes = rule.shapes(table.dimensions)
    parts = [torch.ones(shape[0]) if scale is None else scale for scale, shape in zip(scales, shapes, strict=True)]
    factors = rule.merge(parts, table.dimensions)  # a norm's are those of one head
    return output * factors.repeat(output.shape[1] // len(factors))


def _apart(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """Which elements differ by more than rounding; NaN differs from everything but NaN."""
    both_nan = theirs.isnan() & ours.isnan()
    limit = APART * theirs.nan_to_num().abs().max()
    return ~(((theirs - ours).abs() <= limit) | both_nan)


def _wrong_parts(rule: Rule, table: Table, theirs: list[torch.Tensor], ours: torch.Tensor) -> list[int]:
    """Numbers of the rule's Hugging Face tensors whose output differs."""
    if len(rule.axes[0].split()) == 1 or rule == EMBEDDING:  # a norm, or a table of vectors: outputs are not its rows
        return [0] if _apart(theirs[0], ours).any() else []
    merged = rule.merge([output.t() for output in theirs], table.dimensions)
    wrong = _apart(merged, ours.t()).any(dim=1)
    return [number for number, rows in enumerate(rule.split(wrong, table.dimensions)) if rows.any()]
