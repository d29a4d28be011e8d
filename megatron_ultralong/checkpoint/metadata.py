"""The pickles of a sharded checkpoint, read with nothing but the classes that it consists of.

DCP unpickles `.metadata`, and entries that are no tensors, with everything allowed, so a checkpoint from outside could
run any code. Here each class is named that a checkpoint of megatron-core's or of our own holds; any other name is
refused before it is looked up. Conversion reads through `read_metadata`; training calls `check_pickles` before
megatron-core's own load.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from megatron_ultralong.errors import UserError

_DCP = "torch.distributed.checkpoint."
_NAMES = frozenset(
    {
        *((_DCP + "metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
        *((_DCP + "metadata", name) for name in ("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")),
        (_DCP + "metadata", "BytesStorageMetadata"),
        (_DCP + "filesystem", "_StorageInfo"),
        *((_DCP + "planner", name) for name in ("SavePlan", "WriteItem", "WriteItemType")),
        *((_DCP + "planner", name) for name in ("TensorWriteData", "BytesIOWriteData")),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),  # where DCP keeps the folder's name as a path
        ("pathlib._local", "PosixPath"),
    }
)
"""(module, name) of all that a `.metadata` names beside the dtypes of torch. A test holds it against real files."""
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, OSError, AttributeError, ValueError, LookupError),
    *(TypeError, ImportError, RuntimeError, MemoryError, OverflowError),
)
"""What a pickle with flipped bits may raise."""
_AGAIN = "copy the checkpoint again"
_COMMON = "common_state"


def read_metadata(path: Path) -> Metadata:
    """Unpickle .metadata, letting only `_NAMES` and dtypes be named in it.

    Raises:
        UserError: it is damaged, or names anything else.
    """
    try:
        with path.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged ({str(error) or type(error).__name__}); {_AGAIN}.") from None
    if not isinstance(metadata, Metadata) or metadata.storage_data is None:
        raise UserError(f"{path} is damaged (no storage_data); {_AGAIN}.")
    return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Refuses everything but the data classes that .metadata consists of."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")


def check_pickles(folder: Path, keys: Iterable[str]) -> None:
    """Read everything that loading `keys` unpickles, with only plain data allowed; costs one reading of .metadata.

    Args:
        folder: a torch_dist directory.
        keys: of what will be loaded.

    Raises:
        UserError: `.metadata`, common.pt or an entry of `keys` is damaged or names code.
    """
    metadata = read_metadata(folder / ".metadata")
    wanted = set(keys)
    if keeps_common_among_shards(folder, metadata):
        wanted.add(_COMMON)
    else:
        _plain(folder / "common.pt", 0, None)
    for index, info in metadata.storage_data.items():
        described = metadata.state_dict_metadata.get(index.fqn)
        if isinstance(described, BytesStorageMetadata) and index.fqn.partition("/shard_")[0] in wanted:
            _plain(folder / info.relative_path, info.offset, info.length)


def keeps_common_among_shards(folder: Path, metadata: Metadata) -> bool:
    """Whether what is not sharded lies where megatron-core 0.19 puts it, and not in common.pt as ours always does."""
    described = any(key.partition("/shard_")[0] == _COMMON for key in metadata.state_dict_metadata)
    return described and not (folder / "common.pt").exists()


def _plain(path: Path, offset: int, length: int | None) -> None:
    """Load a torch.save'd object with weights_only, to see that it can be."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            torch.load(io.BytesIO(stream.read(-1 if length is None else length)), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {_AGAIN}.") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged, or holds more than plain values ({reason}); {_AGAIN}.") from None
