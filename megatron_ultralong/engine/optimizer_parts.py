"""What the parts of megatron-core's optimizer update on this rank: stretches of parameters, and the lists of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from megatron_ultralong.engine import mcore

_LISTS = (
    ("float16_groups", "fp32_from_float16_groups"),  # of a Float16OptimizerWithFloat16Params
    ("fp32_from_fp32_groups",),
    ("model_float16_groups", "shard_float16_groups", "shard_fp32_from_float16_groups"),  # of a DistributedOptimizer
    ("model_fp32_groups", "shard_fp32_groups"),
)
"""Lists of a part that run alike: the first has the model's parameters, the last what Adam updates for them."""


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A stretch of a parameter that this rank updates.

    Attributes:
        parameter: the model's.
        start: where the stretch begins in the flattened parameter.
        alone: no other rank of the data- and context-parallel group updates it; else all update all of it.
        updated: what Adam updates, and by which its state is found: the fp32 main weights of a bf16 parameter, else
            the stretch of the parameter itself.
        group: settings of Adam for it.
    """

    parameter: Tensor
    start: int
    alone: bool
    updated: Tensor
    group: dict[str, Any]

    @property
    def main(self) -> Tensor | None:
        """The fp32 weights of a bf16 parameter, flat; None where the parameter is fp32 itself."""
        return None if self.updated.dtype == self.parameter.dtype else self.updated.detach().view(-1)

    def of(self, tensor: Tensor) -> Tensor:
        """The stretch of another tensor of the parameter's shape, as a flat view."""
        return tensor.detach().view(-1)[self.start : self.start + self.updated.numel()]


def parts(optimizer: Any) -> list[Any]:
    """The optimizers that megatron-core's `optimizer` is made of, without those of no parameters."""
    return [part for part in getattr(optimizer, "chained_optimizers", [optimizer]) if part.optimizer is not None]


def stretches(part: Any) -> list[Stretch]:
    """What a part updates, in the order of its parameter groups."""
    return list(_stretches(part))


def _stretches(part: Any) -> Iterator[Stretch]:
    alone = isinstance(part, mcore.DistributedOptimizer)
    parameters: dict[Tensor, Tensor] = {}
    for names in _LISTS:
        models, updated = (getattr(part, name, ()) for name in (names[0], names[-1]))
        for group in zip(models, updated, strict=True):
            parameters |= {one: model for model, one in zip(*group, strict=True)}
    for settings in part.optimizer.param_groups:
        for one in settings["params"]:
            parameter = parameters.get(one, one)
            start = part._get_model_param_range_map(parameter)["param"].start if alone else 0
            yield Stretch(parameter, start, alone, one, settings)


def remove(part: Any, gone: list[Stretch]) -> None:
    """Have a part know nothing of these any more."""
    keys = {id(stretch.updated) for stretch in gone}
    for settings in part.optimizer.param_groups:
        settings["params"] = [one for one in settings["params"] if id(one) not in keys]
    for names in _LISTS:
        for lists in zip(*(getattr(part, name, ()) for name in names), strict=True):
            kept = [row for row in zip(*lists, strict=True) if id(row[-1]) not in keys]
            for place, own in enumerate(lists):
                own[:] = [row[place] for row in kept]
