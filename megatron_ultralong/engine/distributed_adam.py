"""What megatron-core 0.16.1 lacks to resume its distributed optimizer over torch's Adam (no Transformer Engine).

It loads into states that don't exist before the first step, looks for each parameter's step where it never stored
one, and leaves all parameters one common step tensor, to which torch's Adam would then add 1 for every parameter.
Costs what the first step would allocate anyway.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from megatron_ultralong.engine import mcore


def make_resumable(optimizer: Any) -> None:
    """Prepare megatron-core's `optimizer`, not yet stepped, for `load_state_dict`; other kinds are left alone."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        adam: Any = getattr(part, "optimizer", None)
        if not isinstance(part, mcore.DistributedOptimizer) or not type(adam).__module__.startswith("torch.optim"):
            continue
        pairs = [(parameter, group) for group in adam.param_groups for parameter in group["params"]]
        for parameter, group in pairs:
            adam.state[parameter] = {
                "step": torch.tensor(0.0, device=parameter.device if group["fused"] else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        part._set_main_param_and_optimizer_states = functools.partial(_fill, part)


def _fill(part: Any, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
    """Copy one parameter's loaded state into place, with a step of its own."""
    group, place = part.model_param_group_index_map[model_param]
    state = part.optimizer.state[part.optimizer.param_groups[group]["params"][place]]
    state["step"] = state["step"].clone()
    type(part)._set_main_param_and_optimizer_states(part, model_param, {**tensors, "step": state["step"]})
