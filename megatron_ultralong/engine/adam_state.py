"""What this rank holds of Adam's state, parameter by parameter, as views: main weights and both moments.

megatron-core 0.16.1 gathers the distributed optimizer of a whole tensor-parallel share on every data-parallel rank to
save or load it in a form that any layout takes ("fully_reshardable"); its forms without that gather take no other
layout ("dp_reshardable") or are switched off ("fully_sharded_model_space"). Views cost nothing, and what is read into
them is in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from megatron_ultralong.engine import host_adam, optimizer_parts
from megatron_ultralong.engine.host_adam import MOMENTS


@dataclasses.dataclass(frozen=True)
class Held:
    """Adam's state of one stretch of one parameter, on its device or the host.

    Attributes:
        parameter: the model's.
        start: where the stretch begins in the flattened parameter.
        alone: no other rank of the data- and context-parallel group holds it; else all hold all of it.
        main: the fp32 weights of a bf16 parameter, flat; None where the parameter is fp32 itself.
        moments: by name, flat.
    """

    parameter: Tensor
    start: int
    alone: bool
    main: Tensor | None
    moments: dict[str, Tensor]


def held(optimizer: Any) -> Iterator[Held]:
    """Everything that this rank's part of megatron-core's `optimizer` holds; states that are not there yet are made."""
    for part in optimizer_parts.parts(optimizer):
        _allocate(part)
        for stretch in optimizer_parts.stretches(part):
            state = part.optimizer.state[stretch.updated]
            moments = {name: state[name].detach().view(-1) for name in MOMENTS}
            yield Held(stretch.parameter, stretch.start, stretch.alone, stretch.main, moments)
    for host in host_adam.of(optimizer):
        for one in host.hosted:
            stretch = one.stretch
            yield Held(stretch.parameter, stretch.start, stretch.alone, stretch.main, one.moments)


def set_steps(optimizer: Any, steps: int) -> None:
    """Have Adam count on from so many updates."""
    for part in optimizer_parts.parts(optimizer):
        adam = part.optimizer
        for state in adam.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"].fill_(steps)
        if not _is_torch(adam):
            for group in adam.param_groups:
                group["step"] = steps
    for host in host_adam.of(optimizer):
        host.steps = steps


def _is_torch(adam: Any) -> bool:
    return type(adam).__module__.startswith("torch.optim")


def _allocate(part: Any) -> None:
    """Make the states that Adam's first step would make."""
    adam = part.optimizer
    if not _is_torch(adam):
        part.init_state_fn(adam, part.config)
        return
    for group in adam.param_groups:
        on_device = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            if not adam.state[parameter]:
                adam.state[parameter] = {
                    "step": torch.tensor(0.0, device=parameter.device if on_device else "cpu"),
                    **{name: torch.zeros_like(parameter) for name in MOMENTS},
                }
