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

from megatron_ultralong.engine import mcore

MOMENTS = ("exp_avg", "exp_avg_sq")
_PAIRS = ("float16_groups", "fp32_from_float16_groups")  # of a Float16OptimizerWithFloat16Params


@dataclasses.dataclass(frozen=True)
class Held:
    """Adam's state of one stretch of one parameter.

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
    for part in _parts(optimizer):
        _allocate(part)
        if isinstance(part, mcore.DistributedOptimizer):
            yield from _of_distributed(part)
            continue
        mains: dict[Tensor, Tensor] = {}
        for halves, wholes in zip(*(getattr(part, name, ()) for name in _PAIRS), strict=True):
            mains |= dict(zip(wholes, halves, strict=True))
        for parameter in _parameters(part):
            main = parameter if parameter in mains else None
            yield _held(mains.get(parameter, parameter), 0, False, main, part.optimizer.state[parameter])


def set_steps(optimizer: Any, steps: int) -> None:
    """Have Adam count on from so many updates."""
    for part in _parts(optimizer):
        adam = part.optimizer
        for state in adam.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"].fill_(steps)
        if not _is_torch(adam):
            for group in adam.param_groups:
                group["step"] = steps
        if hasattr(adam, "_sync_hdo_state_to_sub_optimizers"):  # its parts on the host step for themselves
            adam._sync_hdo_state_to_sub_optimizers()


def _parts(optimizer: Any) -> list[Any]:
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if part.optimizer is not None]


def _parameters(part: Any) -> Iterator[Tensor]:
    return (parameter for group in part.optimizer.param_groups for parameter in group["params"])


def _is_torch(adam: Any) -> bool:
    return type(adam).__module__.startswith("torch.optim")


def _allocate(part: Any) -> None:
    """Make the states that Adam's first step would make."""
    adam = part.optimizer
    if hasattr(adam, "dummy_step"):  # megatron-core's HybridDeviceOptimizer
        if not adam.state:
            adam.dummy_step()
    elif not _is_torch(adam):
        part.init_state_fn(adam, part.config)
    else:
        for group in adam.param_groups:
            on_device = group.get("fused") or group.get("capturable")
            for parameter in group["params"]:
                if not adam.state[parameter]:
                    adam.state[parameter] = {
                        "step": torch.tensor(0.0, device=parameter.device if on_device else "cpu"),
                        **{name: torch.zeros_like(parameter) for name in MOMENTS},
                    }


def _of_distributed(part: Any) -> Iterator[Held]:
    for buckets in (buckets for ranges in part.gbuf_ranges for buckets in ranges.values()):
        for parameter, place in (pair for bucket in buckets for pair in bucket["param_map"].items()):
            state = part._get_main_param_and_optimizer_states(parameter)
            main = None if parameter.dtype == torch.float32 else state["param"]
            yield _held(parameter, place["param"].start, True, main, state)


def _held(parameter: Tensor, start: int, alone: bool, main: Tensor | None, state: dict[str, Tensor]) -> Held:
    moments = {name: state[name].detach().view(-1) for name in MOMENTS}
    return Held(parameter, start, alone, None if main is None else main.detach().view(-1), moments)
