"""Where in the step an operator, a message or an allocation belongs: module, part, direction and microbatch.

In forward hooks say it. In backward the sequence number of the running autograd node does: it lies in a stretch of
numbers that began when forward was at some place. Costs a bisection an operator.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from megatron_ultralong.model.lean.lean_layer import LeanLayer

PARTS = {
    "Rotary": "table of positions",
    "LanguageModelEmbedding": "embedding",
    "RMSNorm": "norms",
    "RotarySelfAttention": "heads, rotation",
    "ColumnParallelLinear": "linear layers",
    "RowParallelLinear": "linear layers",
    "RingCoreAttention": "attention",
    "TECoreAttention": "attention",
    "MLP": "SwiGLU",
    "TransformerLayer": "residual stream",
    "SelectiveLayer": "residual stream",
    "LeanLayer": "layer by tiles",
}
GRADIENTS, REST = "gradients into DDP's buffers", "the rest of the step"
HEAD, OPTIMIZER = "head and loss", "optimizer"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the step is.

    Attributes:
        part: one of PARTS's values, or what was entered by name.
        module: the innermost module's path in the model, "" outside.
        way: "forward", "backward", "forward again" (recomputation) or "" outside of both.
        microbatch: the first is 0; -1 outside.
        period: forwards of microbatches begun so far, less 1; a full pipeline does the same in each.
    """

    part: str
    module: str = ""
    way: str = ""
    microbatch: int = -1
    period: int = -1


@dataclasses.dataclass(frozen=True)
class _Entry:
    part: str
    module: str


class Places:
    """Follows a step. `now` is where it is."""

    def __init__(self) -> None:
        self.stack = [_Entry(REST, "")]
        self.forwards = -1  # of the model, begun so far, less 1
        self._modules = 0  # on the stack
        self._numbers, self._entries = [0], [(self.stack[0], -1)]

    def restart(self) -> None:
        """Count microbatches from 0 again."""
        self.forwards = -1

    def now(self) -> Place:
        """Where the step is."""
        node, top = torch._C._current_autograd_node(), self.stack[-1]
        if node is None:
            inside = self._modules > 0
            way, microbatch = ("forward", self.forwards) if inside else ("", -1)
            return Place(top.part, top.module, way, microbatch, self.forwards)
        entry, microbatch = self._of(node)
        if self._modules:
            return Place(top.part, top.module, "forward again", microbatch, self.forwards)
        if len(self.stack) > 1:
            return Place(top.part, entry.module, "backward", microbatch, self.forwards)
        gradients = node.name() == "torch::autograd::AccumulateGrad"
        return Place(GRADIENTS if gradients else entry.part, entry.module, "backward", microbatch, self.forwards)

    def enter(self, part: str, module: str = "") -> None:
        """From now on the step is in `part`, until `leave`; in a module's forward if one is given."""
        self._modules += bool(module)
        self.stack.append(_Entry(part, module or self.stack[-1].module))
        self._note()

    def leave(self, module: str = "") -> None:
        """Back to where it was before."""
        self._modules -= bool(module)
        self.stack.pop()
        self._note()

    def _of(self, node: Any) -> tuple[_Entry, int]:
        return self._entries[bisect.bisect_right(self._numbers, node._sequence_nr()) - 1]

    def _note(self) -> None:
        """From the next autograd node on, nodes are of the place that is on top."""
        number, node = torch.autograd._get_sequence_nr(), torch._C._current_autograd_node()
        entry = self.stack[-1], self.forwards if node is None else self._of(node)[1]
        if number == self._numbers[-1]:
            self._entries[-1] = entry
        elif number > self._numbers[-1]:
            self._numbers.append(number)
            self._entries.append(entry)

    def watch(self, model: torch.nn.Module) -> None:
        """Follow the modules of `model`, and around its head."""
        model.register_forward_pre_hook(lambda *_: self._begin())
        passed_by = {getattr(model, "output_layer", None)}  # its weight alone is used, by the loss
        passed_by.update(*(layer.holders() for layer in model.modules() if isinstance(layer, LeanLayer)))
        for path, module in model.named_modules():
            part = PARTS.get(type(module).__name__)
            if part is not None and module not in passed_by:
                module.register_forward_pre_hook(lambda *_, part=part, path=path: self.enter(part, path))
                module.register_forward_hook(lambda *_, path=path: self.leave(path), always_call=True)
        head: Any = model._postprocess
        model._postprocess = self.around(HEAD, head, "output_layer")  # type: ignore[assignment]

    def _begin(self) -> None:
        if torch._C._current_autograd_node() is None:
            self.forwards += 1

    def around(self, part: str, function: Callable[..., Any], module: str = "") -> Callable[..., Any]:
        """`function`, inside which the step is in `part`."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.enter(part, module)
            try:
                return function(*arguments, **keywords)
            finally:
                self.leave(module)

        return call
