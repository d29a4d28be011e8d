"""Sharded tensors of a checkpoint into a model, whatever layout wrote them: megatron-core's dist_checkpointing.load.

Training resumes and begins through it, and conversion's comparison of logits loads the model it has written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from megatron_ultralong.checkpoint.metadata import check_pickles
from megatron_ultralong.engine import mcore
from megatron_ultralong.errors import UserError


def model_state(model: torch.nn.Module) -> dict[str, Any]:
    """The model's sharded tensors, without the empty FP8 states that only Transformer Engine fills."""
    state = model.sharded_state_dict()  # type: ignore[operator]
    return {key: value for key, value in state.items() if not key.endswith("_extra_state")}


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights into `model` (this rank's part), whatever layout wrote them.

    Raises:
        UserError: a file of the checkpoint is missing or damaged, or a tensor is missing or of another shape.
    """
    load_model_state(model, load_sharded({"model": model_state(model)}, folder)["model"])


def load_model_state(model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Put what `load_sharded` gave for `model_state` into the model; every parameter must be there."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("_extra_state")]
    assert not missing and not unexpected, (missing, unexpected)


def load_sharded(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """dist_checkpointing.load, after every rank has checked the pickles that it will read.

    Raises:
        UserError: on every rank, in one sentence, if it fails on one.
    """
    loaded: dict[str, Any] = {}
    reason = ""
    try:
        check_pickles(folder, _keys(state))
        loaded = mcore.dist_checkpointing.load(state, str(folder))
    except UserError as error:
        reason = str(error)
    except (Exception, CheckpointException) as error:  # the latter is a BaseException: each rank's failure
        failures = error.failures if isinstance(error, CheckpointException) else {}
        cause = next((failure for failure, _ in failures.values()), error)
        said = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
        reason = f"{folder}: the checkpoint cannot be loaded ({said}); convert or copy it again, or give another."
    reasons = [""] * dist.get_world_size()
    dist.all_gather_object(reasons, reason)
    if any(reasons):
        raise UserError(next(filter(None, reasons)))
    return loaded


def _keys(state: Any) -> Iterator[str]:
    """Keys of megatron-core's sharded tensors and objects, however deep."""
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, (list, tuple)):
        for value in state:
            yield from _keys(value)
    elif hasattr(state, "key"):
        yield state.key
