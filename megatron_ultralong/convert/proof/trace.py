"""Where two models part: inputs and outputs of every mapped module, in transformers' model and in megatron-core's.

The name table says which modules belong together, and its spans which output rows; so a difference is traced to the
layer and the tensor, or to the arithmetic between two tensors (rope, mask, activation). What is rounding is measured
at each place, as the difference of transformers' fp32 from its fp64. Values are kept at a few positions only, so the
three traces of an 8B model take 1 GB beside the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_ultralong.convert.folding import QueryFold
from megatron_ultralong.convert.parameter_mapping import Table
from megatron_ultralong.families.rules import Rule
from megatron_ultralong.families.tables import EMBEDDING
from megatron_ultralong.model.build import SAVED_NAMES

POSITIONS = 32
_TIMES, _FLOOR = 2.0, 1e-6


def allowed(rounding: Any, largest: Any) -> Any:
    """How far a value may be from fp64: twice transformers' own rounding, and a millionth (8 ulps) of the largest."""
    return _TIMES * rounding + _FLOOR * largest


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


@dataclasses.dataclass(frozen=True)
class Traces:
    """Three passes over the same tokens: transformers in fp32 and in fp64, and megatron-core in fp32."""

    theirs: Trace
    exact: Trace
    ours: Trace

    @classmethod
    def at(cls, positions: torch.Tensor) -> Traces:
        """Empty ones, that will keep these positions."""
        return cls(Trace(positions), Trace(positions), Trace(positions))


def spread(length: int) -> torch.Tensor:
    """Up to POSITIONS positions over a sequence, the last among them."""
    return torch.linspace(0, length - 1, min(POSITIONS, length)).round().long()


@contextlib.contextmanager
def follow_transformers(model: torch.nn.Module, table: Table, trace: Trace, length: int) -> Iterator[None]:
    """Hook the modules of a transformers model that the table names."""
    with contextlib.ExitStack() as hooks:
        for rule, layer in _places(table):
            for part, name in enumerate(rule.names(layer)):
                module = model.get_submodule(name.removesuffix(".weight"))
                hooks.enter_context(module.register_forward_hook(trace.hook((rule.megatron, layer, part), length)))
        yield


@contextlib.contextmanager
def follow_megatron(model: torch.nn.Module, table: Table, trace: Trace, length: int) -> Iterator[None]:
    """Hook the modules of a megatron-core model (all layers on this rank) that the table names."""
    with contextlib.ExitStack() as hooks:
        for rule, layer in _places(table):
            hook = trace.hook((rule.megatron, layer, 0), length)
            hooks.enter_context(megatron_module(model, rule, layer).register_forward_hook(hook))
        yield


def megatron_module(model: torch.nn.Module, rule: Rule, layer: int) -> Any:
    """The module of a megatron-core model (all layers on this rank) that holds a rule's tensor."""
    name = rule.megatron
    for own, saved in SAVED_NAMES.items():
        name = name.replace(saved, own)
    name = name.replace("decoder.layers.", f"decoder.layers.{layer}.")
    return model.get_submodule(name.removesuffix(".weight").removesuffix(".bias"))


def _places(table: Table) -> list[Place]:
    """Every weight that is a module's; the output layer apart, whose outputs are the logits."""
    skipped = ("bias", "output_layer.weight")
    return [(rule, layer) for rule, layer in table.pieces() if not rule.megatron.endswith(skipped)]


def part(table: Table, fold: QueryFold, traces: Traces) -> str | None:
    """The first place at which the models part, in words that name the tensors; None: nowhere.

    `fold` is what transformers' queries hold and megatron-core's don't.
    """
    theirs, exact, ours = traces.theirs, traces.exact, traces.ours
    rules = {rule.megatron: rule for rule in table.rules}
    biased = {rule.megatron.removesuffix(".bias") for rule in table.rules if rule.megatron.endswith(".bias")}
    for key, layer, _ in ours.outputs:
        rule = rules[key]
        place = f"layer {layer}" if rule.layered else "the model"
        own = (key, layer, 0)
        if own in ours.inputs and _apart(theirs.inputs[own], exact.inputs[own], ours.inputs[own]).any():
            between = next((what for suffix, what in _BETWEEN.items() if key.endswith(suffix)), "what comes before it")
            return f"{place}: {between}; {', '.join(rule.names(layer))} gets other input, all weights before agree"
        factors = fold.fused(rule, table.dimensions)
        output = ours.outputs[own]
        if factors is not None:  # a norm's are those of one head
            output = output * factors.repeat(output.shape[1] // len(factors))
        parts = [(theirs.outputs[key, layer, n], exact.outputs[key, layer, n]) for n in range(len(rule.hf))]
        wrong = _wrong_parts(rule, table, parts, output)
        if wrong:
            also = " or its bias" if key.removesuffix(".weight") in biased else ""
            names = ", ".join(rule.names(layer)[number] for number in wrong)
            return f"{place}: {names}{also} ({key}) gives another output for the same input"
    return None


def _apart(theirs: torch.Tensor, exact: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """Which of megatron-core's elements are off by more than rounding; NaN differs from everything but NaN."""
    both_nan = exact.isnan() & ours.isnan()
    rounding = (theirs - exact).nan_to_num().abs().max()
    limit = allowed(rounding, exact.nan_to_num().abs().max())
    return ~(((ours - exact).abs() <= limit) | both_nan)


def _wrong_parts(
    rule: Rule, table: Table, parts: list[tuple[torch.Tensor, torch.Tensor]], ours: torch.Tensor
) -> list[int]:
    """Numbers of the rule's Hugging Face tensors whose output differs; `parts`: theirs in fp32 and fp64."""
    if len(rule.axes[0].split()) == 1 or rule == EMBEDDING:  # a norm, or a table of vectors: outputs are not its rows
        return [0] if _apart(*parts[0], ours).any() else []
    theirs, exact = (rule.merge([part[n].t() for part in parts], table.dimensions) for n in range(2))
    wrong = _apart(theirs, exact, ours.t()).any(dim=1)
    return [number for number, rows in enumerate(rule.split(wrong, table.dimensions)) if rows.any()]
