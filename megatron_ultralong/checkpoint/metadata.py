"""The .metadata of a DCP checkpoint, unpickled with nothing but DCP's own plain data classes.

DCP itself unpickles it with everything allowed, so a checkpoint from outside could run any code; here a name that
no checkpoint needs is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from megatron_ultralong.errors import UserError

_CHECKPOINT_MODULES = ("torch.distributed.checkpoint.", "megatron.core.dist_checkpointing.")
_PLAIN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("collections", "OrderedDict"),
}
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, OSError, AttributeError, ValueError, LookupError),
    *(TypeError, ImportError, RuntimeError, MemoryError, OverflowError),
)
"""What a pickle with flipped bits may raise."""


def read_metadata(path: Path) -> Metadata:
    """Unpickle .metadata, letting only DCP's own plain classes be named in it."""
    try:
        with path.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
    except _DAMAGE as error:
        raise UserError(
            f"{path} is damaged ({str(error) or type(error).__name__}); copy the checkpoint again."
        ) from None
    if not isinstance(metadata, Metadata) or metadata.storage_data is None:
        raise UserError(f"{path} is damaged (no storage_data); copy the checkpoint again.")
    return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Refuses everything but the data classes that .metadata consists of."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or (module, name) in _PLAIN:
            return super().find_class(module, name)
        if module.startswith(_CHECKPOINT_MODULES) and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__.startswith(_CHECKPOINT_MODULES):
                return found
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")
