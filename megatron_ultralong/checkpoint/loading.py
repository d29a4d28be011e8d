"""Sharded tensors of a checkpoint into a model, whatever layout wrote them: megatron-core's dist_checkpointing.load.

Training resumes and begins through it, and conversion's comparison of logits loads the model it has written.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException

from megatron_ultralong.checkpoint import shares
from megatron_ultralong.checkpoint.metadata import check_pickles
from megatron_ultralong.checkpoint.shares import Copy
from megatron_ultralong.engine import mcore
from megatron_ultralong.errors import UserError

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class DamagedError(UserError):
    """A checkpoint that cannot be loaded because of what it holds."""


def model_state(model: torch.nn.Module) -> dict[str, Any]:
    """The model's sharded tensors, without the empty FP8 states that only Transformer Engine fills."""
    state = model.sharded_state_dict()  # type: ignore[operator]
    return {key: value for key, value in state.items() if not key.endswith("_extra_state")}


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights into `model` (this rank's part), whatever layout wrote them.

    Raises:
        DamagedError: a file of the checkpoint is missing or damaged, or a tensor is missing or of another shape.
    """
    weights = weight_copies(model)
    group = mcore.parallel_state.get_data_parallel_group(with_context_parallel=True)
    load_sharded({"weights": shares.own_boxes(weights, group.rank(), group.size())}, folder)
    shares.exchange(weights, group)


def weight_copies(model: torch.nn.Module) -> list[Copy]:
    """The model's weights, which every rank of a data- and context-parallel group holds."""
    found: list[Copy] = []
    for sharded in model_state(model).values():
        found += shares.copies_of(shares.pieces(sharded), sharded.key, sharded.data.detach().view(-1))
    return found


def load_sharded(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """dist_checkpointing.load, after every rank has checked the pickles that it will read.

    Raises:
        DamagedError: on every rank, in one sentence, if the checkpoint is at fault on one.
        OSError, MemoryError, RuntimeError: on the rank that could not read a disk or had no memory left, which says
            nothing of the checkpoint. The others wait until they are ended (training/watchdog.py).
    """
    loaded: dict[str, Any] = {}
    reason = ""
    try:
        check_pickles(folder, _keys(state))
        loaded = mcore.dist_checkpointing.load(state, str(folder), validate_access_integrity=False)
    except UserError as error:
        raise_the_machines(error)
        reason = str(error)
    except (Exception, CheckpointException) as error:  # the latter is a BaseException: each rank's failure
        failures = error.failures if isinstance(error, CheckpointException) else {dist.get_rank(): (error, None)}
        own, _ = failures.get(dist.get_rank(), (None, None))
        if own is not None and _is_the_machines(own):
            raise own from None
        cause = next(failure for failure, _ in failures.values())
        said = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
        reason = f"{folder}: the checkpoint cannot be loaded ({said}); convert or copy it again, or give another."
    reasons = [""] * dist.get_world_size()
    dist.all_gather_object(reasons, reason)
    if any(reasons):
        raise DamagedError(next(filter(None, reasons)))
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


def raise_the_machines(error: UserError) -> None:
    """Raise what made a checkpoint unreadable, if that was a disk's failure or a lack of memory."""
    if error.__context__ is not None and _is_the_machines(error.__context__):
        raise error.__context__ from None


def _is_the_machines(error: BaseException) -> bool:
    """Whether a failure is a disk's or the memory's, and not that of the files."""
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _MISSING
    no_memory = re.search("out of memory|not enough memory|allocate memory", str(error))
    return isinstance(error, MemoryError) or bool(isinstance(error, RuntimeError) and no_memory)
