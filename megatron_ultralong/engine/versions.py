"""What differs between megatron-core 0.16 and 0.19: a function for each difference, which looks at what is there.

Every symbol that all of them have is in mcore.py. Checkpoints are the same files under every version: each writes and
prefers common.pt, which from 0.19 on megatron-core only reads.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from megatron_ultralong.engine.mcore import dist_checkpointing, dist_utils

_SERIALIZATION = "megatron.core.dist_checkpointing.serialization"
_COMMON = "megatron.core.dist_checkpointing.strategies.common"


def plan_save(state: dict[str, Any], folder: str, write_common: Callable[[Any, Any], None]) -> Any:
    """dist_checkpointing.save as a request to be carried out later; what is not sharded goes through `write_common`.

    0.16 asks a registered strategy to write it, 0.17 and 0.18 a function; 0.19 keeps it among the shards, where the
    others do not look, so there it is written beside them. From 0.17 on the request must be asked for by the name of
    megatron-core's own writer.

    Args:
        state: sharded tensors and plain values, the latter at the top.
        folder: empty.
        write_common: called with the plain values and the folder, on every rank.
    """
    serialization, common = importlib.import_module(_SERIALIZATION), importlib.import_module(_COMMON)
    asked: list[Any] = []

    def write(values: Any, place: Any) -> None:
        asked.append(values)
        write_common(values, place)

    replacement: Callable[..., None]
    by_strategy = getattr(common, "TorchCommonSaveStrategy", None)
    if by_strategy is not None:
        place, name, replacement = by_strategy, "save_common", lambda self, values, place: write(values, place)
    else:
        place, name, replacement = serialization, "save_common", write
    before = getattr(place, name, None)
    options = {"async_strategy": "mcore"} if _takes(dist_checkpointing.save, "async_strategy") else {}
    if before is not None:
        setattr(place, name, replacement)
    try:
        # Its own check of the shards would gather what every rank writes on all of them.
        request = dist_checkpointing.save(
            state, folder, validate_access_integrity=False, async_sharded_save=True, **options
        )
    finally:
        if before is not None:
            setattr(place, name, before)
    if not asked:
        _, kept = dist_utils.extract_nonpersistent(state)
        write_common(dist_utils.extract_sharded_base(kept)[1], folder)
    return request


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters
