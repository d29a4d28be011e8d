"""What differs between megatron-core 0.16 and 0.19: a function for each difference, which looks at what is there.

Every symbol that all of them have is in mcore.py. Checkpoints are the same files under every version: each writes and
prefers common.pt, which from 0.19 on megatron-core only reads.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from megatron_ultralong.engine.mcore import dist_checkpointing, dist_utils
from megatron_ultralong.engine.replacing import replaced

_SERIALIZATION = "megatron.core.dist_checkpointing.serialization"
_COMMON = "megatron.core.dist_checkpointing.strategies.common"


def plan_save(state: dict[str, Any], folder: str, write_common: Callable[[Any, Any], None]) -> Any:
    """dist_checkpointing.save as a request to be carried out later; what is not sharded goes through `write_common`.

    0.16 has a class to write it, 0.17 and 0.18 a function; 0.19 would keep it among the shards, where the others do not
    look, so there it is taken out before. From 0.17 on, megatron-core's own writer must be asked for by name.

    Args:
        state: sharded tensors and plain values.
        folder: empty.
        write_common: called with the plain values and the folder, on every rank.
    """
    serialization, common = importlib.import_module(_SERIALIZATION), importlib.import_module(_COMMON)
    options = {"async_strategy": "mcore"} if _takes(dist_checkpointing.save, "async_strategy") else {}
    save = functools.partial(
        dist_checkpointing.save, validate_access_integrity=False, async_sharded_save=True, **options
    )  # its own check of the shards would gather what every rank writes on all of them
    if hasattr(common, "TorchCommonSaveStrategy"):
        by_method: Callable[..., None] = lambda self, values, place: write_common(values, place)  # noqa: E731
        with replaced(common.TorchCommonSaveStrategy, "save_common", by_method):
            return save(state, folder)
    if hasattr(serialization, "save_common"):
        with replaced(serialization, "save_common", write_common):
            return save(state, folder)
    _, kept = dist_utils.extract_nonpersistent(state)
    state, values = dist_utils.extract_sharded_base(kept)
    request = save(state, folder)  # it wants an empty folder
    write_common(values, folder)
    return request


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters
