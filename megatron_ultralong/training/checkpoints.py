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
import torch.distributed as dist

from megatron_ultralong.checkpoint import loading, shares
from megatron_ultralong.checkpoint.description import DESCRIPTION, Description
from megatron_ultralong.checkpoint.loading import DamagedError
from megatron_ultralong.checkpoint.metadata import read_metadata
from megatron_ultralong.checkpoint.shares import Copy, Piece
from megatron_ultralong.data.reading.blend import Position
from megatron_ultralong.engine import adam_state, mcore, random_state
from megatron_ultralong.errors import UserError

logger = logging.getLogger(__name__)

_STATE = "optimizer.state"  # keys are those of megatron-core's "fully_reshardable" form


_REPLACED = r"\.step_(\d+)\..+\.old"  # as files.replace_directory names it; what _prune moves has no host in its name


def step_folder(save: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return save / f"step_{step:06d}"


def step_folders(save: Path | None) -> list[Path]:
    """Every checkpoint below `save`, whole or not, the highest step first.

    Each is a step_N; or what stood there while another was put in its place by a process that was killed in between.
    """
    if save is None or not save.is_dir():
        return []
    named = {entry.name: entry for entry in save.iterdir() if entry.is_dir()}
    found = {step_of(entry): entry for name, entry in named.items() if re.fullmatch(r"step_\d+", name)}
    for name, entry in sorted(named.items()):
        if replaced := re.fullmatch(_REPLACED, name):
            found.setdefault(int(replaced[1]), entry)
    return [found[step] for step in sorted(found, reverse=True)]


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name[5:])


def restore_replaced(save: Path) -> None:
    """Give their names back to checkpoints that were moved aside for others, which then did not come."""
    for entry in sorted(save.glob(".step_*.old")):
        replaced = re.fullmatch(_REPLACED, entry.name)
        if replaced and not (target := step_folder(save, int(replaced[1]))).exists():
            entry.rename(target)


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


def run_state(model: torch.nn.Module, optimizer: Any, scheduler: Any, step: int) -> dict[str, Any]:
    """What this rank writes of a run's checkpoint, as megatron-core's sharded tensors and plain values.

    Args:
        model: the GPTModel.
        optimizer: megatron-core's.
        scheduler: megatron-core's.
        step: optimizer steps done.
    """
    parts = _parts(model)
    copies, alone = loading.weight_copies(model), list[Any]()
    for held in adam_state.held(optimizer):
        key, pieces = parts[held.parameter]
        for name, values in (("param", held.main), *held.moments.items()):
            if values is None:
                continue
            if not held.alone:
                copies += shares.copies_of(pieces, f"{_STATE}.{name}.{key}", values)
            elif pieces[0].is_main:
                alone += shares.boxes_of(pieces, f"{_STATE}.{name}.{key}", held.start, values)
    group = _group()
    written = shares.own_boxes([copy for copy in copies if copy.piece.is_main], group.rank(), group.size())
    return {
        "tensors": written + alone,
        "scheduler": scheduler.state_dict(),
        "step": step,
        "random": random_state.sharded(),
    }


def _group() -> dist.ProcessGroup:
    """The ranks that hold the same weights."""
    group: dist.ProcessGroup = mcore.parallel_state.get_data_parallel_group(with_context_parallel=True)
    return group


def _parts(model: torch.nn.Module) -> dict[torch.Tensor, tuple[str, list[Piece]]]:
    """Each parameter's key and its pieces in the checkpoint."""
    return {sharded.data: (sharded.key, shares.pieces(sharded)) for sharded in loading.model_state(model).values()}


def _layout(run: dict[str, Any]) -> tuple[int, ...]:
    """Which rank is what, by a run's resolved configuration."""
    return (run["processes"], *(run["parallel"][axis] for axis in ("tensor", "pipeline", "context")))


def load_run(folder: Path, model: torch.nn.Module, optimizer: Any, scheduler: Any, run: dict[str, Any]) -> int:
    """Resume from a run's checkpoint: weights, optimizer, scheduler and, under the same layout, random states.

    Another precision, and the distributed optimizer where there was none, take what they need: fp32 weights are read
    from the main weights of a bf16 run, main weights from the weights of an fp32 run. All is read in place.

    Args:
        folder: the checkpoint.
        model: the GPTModel.
        optimizer: megatron-core's.
        scheduler: megatron-core's.
        run: `Description.run` of this run, whose layout is compared with the checkpoint's.

    Returns:
        Optimizer steps done.

    Raises:
        DamagedError: on every rank, if any of them cannot load its part.
        UserError: there is no state of an optimizer in it.
    """
    copies, alone = _places(model, optimizer, _main_weights(folder))
    group = _group()
    state: dict[str, Any] = {"tensors": shares.own_boxes(copies, group.rank(), group.size()) + alone}
    written = Description.read(folder).run
    same_layout = "processes" in written and _layout(written) == _layout(run)
    if same_layout:
        state["random"] = random_state.sharded()
    loaded = loading.load_sharded(state, folder)
    shares.exchange(copies, group)
    scheduler.load_state_dict(loaded["scheduler"])
    adam_state.set_steps(optimizer, scheduler.num_steps)  # skipped steps are steps of neither
    if same_layout:
        random_state.restore(loaded["random"])
    return int(loaded["step"])


def _places(model: torch.nn.Module, optimizer: Any, main: str) -> tuple[list[Copy], list[Any]]:
    """Where a checkpoint's tensors go: those that the group reads by shares, and boxes that are this rank's alone.

    Args:
        main: what the keys of its main weights begin with; "": it has none.
    """
    parts, copies, alone = _parts(model), list[Copy](), list[Any]()
    for held in adam_state.held(optimizer):
        key, pieces = parts[held.parameter]
        named = {f"{_STATE}.{name}.{key}": values for name, values in held.moments.items()}
        if held.main is not None:
            named[f"{main}{key}"] = held.main
        for name, values in named.items():
            if held.alone:
                alone += shares.boxes_of(pieces, name, held.start, values)
            else:
                copies += shares.copies_of(pieces, name, values)
    for parameter, (key, pieces) in parts.items():
        whole = parameter.dtype == torch.float32
        copies += shares.copies_of(pieces, f"{main}{key}" if whole else key, parameter.detach().view(-1))
    return copies, alone


def _main_weights(folder: Path) -> str:
    """What the keys of a checkpoint's main weights begin with, as rank 0 reads it; "" for those of an fp32 run."""
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            keys = read_metadata(folder / ".metadata").state_dict_metadata
            beginnings = [f"{_STATE}.{name}." for name in ("exp_avg", "param", "fp32_param")]
            found = [[any(key.startswith(beginning) for key in keys) for beginning in beginnings]]
        except UserError as error:
            loading.raise_the_machines(error)
            found = [str(error)]
    dist.broadcast_object_list(found)
    if isinstance(found[0], str):
        raise DamagedError(f"{folder}: the checkpoint cannot be loaded ({found[0]})")
    moments, *mains = found[0]
    if not moments:
        raise UserError(
            f"{folder}: holds no state of an optimizer to resume from; give it as checkpoint.load, and another folder "
            "as checkpoint.save."
        )
    return next((f"{_STATE}.{name}." for name, there in zip(("param", "fp32_param"), mains, strict=True) if there), "")
