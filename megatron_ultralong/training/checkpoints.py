"""A run's sharded checkpoints: megatron-core's `torch_dist` format plus one JSON file that says what they hold.

A checkpoint is a folder that appears whole (written beside, renamed by rank 0). It loads under any layout of
TP, PP, CP and DP. `ultralong.json` in it names the model (its config.json), the rope it was trained with, the
step, the resolved configuration, what wrote it and the size of every file; weights, optimizer, scheduler and
random states are megatron-core's `torch_dist` files. A folder whose files are not those that `ultralong.json`
names is damaged: the one before it is used. Cost of finding that out: one `stat` a file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.checkpoint.description import DESCRIPTION, Description
from megatron_ultralong.checkpoint.loading import load_model_state, load_sharded, model_state
from megatron_ultralong.data.reading.blend import Position
from megatron_ultralong.engine import random_state
from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

# The one optimizer-state form of megatron-core 0.16.1 that reshards and saves on the CPU.
_OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def step_folder(save: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return save / f"step_{step:06d}"


def step_folders(save: Path | None) -> list[Path]:
    """Every step_N below `save`, whole or not, the highest step first."""
    if save is None or not save.is_dir():
        return []
    found = [entry for entry in save.iterdir() if re.fullmatch(r"step_\d+", entry.name) and entry.is_dir()]
    return sorted(found, key=lambda entry: int(entry.name[5:]), reverse=True)


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, as far as its files' sizes show; "" for nothing."""
    try:
        return Description.read(folder).damage(folder)
    except UserError as error:
        return str(error)


def sound(save: Path | None) -> Iterator[Path]:
    """The checkpoints below `save` that are undamaged, newest first; each damaged one is named in the log.

    Raises:
        UserError: there are checkpoints, and all of them are damaged or were asked for in vain.
    """
    folders = step_folders(save)
    for folder in folders:
        problem = damage(folder)
        if not problem:
            yield folder
        else:
            logger.warning("%s is damaged and passed over: %s", folder, problem)
    if folders:
        raise UserError(
            f"{save}: no checkpoint there can be loaded (the newest is {folders[0].name}); "
            "put a good one there, or move the folder away to start from checkpoint.load."
        )


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


def run_state(model: torch.nn.Module, optimizer: Any, scheduler: Any, step: int, loading: bool) -> dict[str, Any]:
    """What a run's checkpoint holds, as megatron-core's sharded tensors and plain values.

    Args:
        model: the GPTModel.
        optimizer: megatron-core's.
        scheduler: megatron-core's.
        step: optimizer steps done.
        loading: the state is to be filled, not written.
    """
    weights = model_state(model)
    return {
        "model": weights,
        "optimizer": optimizer.sharded_state_dict(dict(weights), is_loading=loading, metadata=_OPTIMIZER_METADATA),
        "scheduler": scheduler.state_dict(),
        "step": step,
        "random": random_state.sharded(),
    }


def _layout(run: dict[str, Any]) -> tuple[int, ...]:
    """Which rank is what, by a run's resolved configuration."""
    return (run["processes"], *(run["parallel"][axis] for axis in ("tensor", "pipeline", "context")))


def load_run(folder: Path, model: torch.nn.Module, optimizer: Any, scheduler: Any, run: dict[str, Any]) -> int:
    """Resume from a run's checkpoint: weights, optimizer, scheduler and, under the same layout, random states.

    Args:
        folder: the checkpoint.
        model: the GPTModel.
        optimizer: megatron-core's.
        scheduler: megatron-core's.
        run: `Description.run` of this run, whose layout is compared with the checkpoint's.

    Returns:
        Optimizer steps done.

    Raises:
        UserError: on every rank, if any of them cannot load its part.
    """
    state = run_state(model, optimizer, scheduler, 0, loading=True)
    written = Description.read(folder).run
    same_layout = "processes" in written and _layout(written) == _layout(run)
    if not same_layout:
        del state["random"]
    loaded = load_sharded(state, folder)
    load_model_state(model, loaded["model"])
    ways = [{key: group[key] for key in ("fused", "foreach") if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(loaded["optimizer"])
    for group, way in zip(optimizer.param_groups, ways, strict=True):
        # The checkpoint's rates came with the groups, and how its run computed; the configuration's win.
        group.update(max_lr=scheduler.max_lr, min_lr=scheduler.min_lr, **way)
    scheduler.load_state_dict(loaded["scheduler"])
    if same_layout:
        random_state.restore(loaded["random"])
    return int(loaded["step"])
