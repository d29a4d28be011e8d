"""Checkpoints: megatron-core's distributed format plus one JSON file that says what they hold.

A checkpoint is a folder that appears whole (written beside, renamed by rank 0). It loads under any layout of
TP, PP, CP and DP. `ultralong.json` in it names the model (its config.json), the rope it was trained with, the
step, and what wrote it; weights, optimizer and scheduler are megatron-core's `torch_dist` files.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from megatron_ultralong.data.blend import Position
from megatron_ultralong.engine import mcore
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import replace_directory
from megatron_ultralong.model.description import DESCRIPTION, Description

# The one optimizer-state form of megatron-core 0.16.1 that reshards and saves on the CPU.
_OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def step_folder(save: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return save / f"step_{step:06d}"


def newest(save: Path | None) -> Path | None:
    """The complete checkpoint with the highest step below `save`, or None."""
    if save is None or not save.is_dir():
        return None
    found = [entry for entry in save.iterdir() if re.fullmatch(r"step_\d+", entry.name)]
    complete = [entry for entry in found if (entry / DESCRIPTION).is_file()]
    return max(complete, key=lambda entry: int(entry.name[5:]), default=None)


def data_position(folder: Path) -> Position:
    """How far the run of this checkpoint had read its data.

    Raises:
        UserError: its description does not say.
    """
    value = Description.read(folder).data
    try:
        return Position.from_json(value or {})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / DESCRIPTION}: does not say how far the data was read ({error}); "
            "give the folder as checkpoint.load to start a new run from its weights."
        ) from None


def _model_state(model: torch.nn.Module) -> dict[str, Any]:
    """The model's sharded tensors, without the empty FP8 states that only Transformer Engine fills."""
    state = model.sharded_state_dict()  # type: ignore[operator]
    return {key: value for key, value in state.items() if not key.endswith("_extra_state")}


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights into `model` (this rank's part), whatever layout wrote them.

    Raises:
        UserError: a file of the checkpoint is missing or damaged, or a tensor is missing or of another shape.
    """
    _load_model(model, _load({"model": _model_state(model)}, folder)["model"])


def _load_model(model: torch.nn.Module, state: dict[str, Any]) -> None:
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("_extra_state")]
    assert not missing and not unexpected, (missing, unexpected)


def _load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """dist_checkpointing.load with its failures said in one sentence."""
    try:
        return mcore.dist_checkpointing.load(state, str(folder))
    except (Exception, CheckpointException) as error:  # the latter is a BaseException: each rank's failure
        failures = error.failures if isinstance(error, CheckpointException) else {}
        cause = next((failure for failure, _ in failures.values()), error)
        reason = " ".join(str(cause).split())[:200]
        raise UserError(
            f"{folder}: the checkpoint cannot be loaded ({type(cause).__name__}: {reason}); "
            "convert or copy it again, or give another."
        ) from error


def save_run(save: Path, model: torch.nn.Module, optimizer: Any, scheduler: Any, description: Description) -> Path:
    """Save weights, optimizer, scheduler and description as `save`/step_N; every rank calls it.

    Returns:
        The folder, complete when this returns on every rank.
    """
    target = step_folder(save, description.step)
    temporary = target.with_name(f".{target.name}.tmp")
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    weights = _model_state(model)
    state = {
        "model": weights,
        "optimizer": optimizer.sharded_state_dict(dict(weights), metadata=_OPTIMIZER_METADATA),
        "scheduler": scheduler.state_dict(),
        "step": description.step,
    }
    mcore.dist_checkpointing.save(state, str(temporary))
    if dist.get_rank() == 0:
        description.write(temporary)
        replace_directory(temporary, target)
    dist.barrier()
    return target


def load_run(folder: Path, model: torch.nn.Module, optimizer: Any, scheduler: Any) -> int:
    """Resume from a run's checkpoint: weights, optimizer and scheduler.

    Returns:
        Optimizer steps done.
    """
    weights = _model_state(model)
    state = {
        "model": weights,
        "optimizer": optimizer.sharded_state_dict(dict(weights), is_loading=True, metadata=_OPTIMIZER_METADATA),
        "scheduler": scheduler.state_dict(),
        "step": 0,
    }
    loaded = _load(state, folder)
    _load_model(model, loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    for group in optimizer.param_groups:  # the checkpoint's rates came with the groups; the configuration's win
        group.update(max_lr=scheduler.max_lr, min_lr=scheduler.min_lr)
    scheduler.load_state_dict(loaded["scheduler"])
    return int(loaded["step"])
