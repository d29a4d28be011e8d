"""megatron-core's `torch_dist` directories, read and written tensor by tensor, without a process group.

The format is PyTorch's distributed checkpoint (DCP: .metadata and .distcp files) plus megatron-core's
metadata.json (which backend wrote it) and common.pt (what is not sharded; empty here). megatron-core's own
`save` wants a process group, every tensor in memory and forked writers; DCP's storage classes want neither,
if the plan is made by hand and tensors are made when they are written. So memory is one group of pieces
(a layer), and nothing here touches a GPU. That megatron-core loads the result is tested.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_ultralong.errors import UserError

_BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_CHECKPOINT_MODULES = ("torch.distributed.checkpoint.", "megatron.core.dist_checkpointing.")
_PLAIN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("collections", "OrderedDict"),
}
_MEND = "give a folder that tools/convert_hf_to_megatron.py or a training run wrote"


@dataclasses.dataclass(frozen=True)
class Piece:
    """A block of a global tensor, made only when it is written.

    Attributes:
        key: the global tensor's key.
        shape: the global tensor's shape.
        layer: its index on a prepended layer axis, or None: the piece is the whole tensor.
        dtype: of the tensor.
        make: returns the block, without the layer axis.
    """

    key: str
    shape: tuple[int, ...]
    layer: int | None
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    @property
    def index(self) -> MetadataIndex:
        """Where it begins in the global tensor."""
        return MetadataIndex(self.key, _block(self.shape, self.layer).offsets)

    def write_item(self) -> WriteItem:
        """DCP's description of it."""
        data = TensorWriteData(
            chunk=_block(self.shape, self.layer),
            properties=TensorProperties(dtype=self.dtype),
            size=torch.Size(self.shape),
        )
        return WriteItem(index=self.index, type=WriteItemType.SHARD, tensor_data=data)


class _LazyPlanner(DefaultSavePlanner):
    """Makes each tensor when the writer asks for it."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        super().__init__(flatten_state_dict=False)
        self.pieces = {piece.index: piece for piece in pieces}

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        piece = self.pieces[write_item.index]
        tensor = piece.make().to(piece.dtype)
        return tensor.unsqueeze(0).contiguous() if piece.layer is not None else tensor.contiguous()


def write(folder: Path, groups: Sequence[Sequence[Piece]]) -> None:
    """Write a checkpoint into an existing empty folder, one .distcp file a group.

    Args:
        folder: where; the caller renames it into place.
        groups: pieces; together they must tile every global tensor. One group is in memory at a time.
    """
    # per_thread_copy_ahead 0: no CUDA stream, even where there is a GPU.
    writer = FileSystemWriter(folder, per_thread_copy_ahead=0)
    writer.set_up_storage_writer(True)
    planner = _LazyPlanner(piece for group in groups for piece in group)
    local = [SavePlan([piece.write_item() for piece in group]) for group in groups]
    plans, metadata = planner.create_global_plan(local)
    plans = writer.prepare_global_plan(plans)
    writer.finish(metadata, [writer.write_data(plan, planner).wait() for plan in plans])
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(_BACKEND), encoding="utf-8")


class Reader(FileSystemReader):
    """A torch_dist directory whose tensors can be read one by one, however they were sharded.

    Attributes:
        tensors: key -> DCP's description of every tensor, optimizer state included.
    """

    def __init__(self, folder: Path) -> None:
        """Read the description, and check that every file it names is there and whole.

        Raises:
            UserError: not a torch_dist directory, or files missing or truncated.
        """
        folder = Path(folder)
        steps = sorted(folder.glob("step_*/metadata.json"))
        if not (folder / "metadata.json").exists() and steps:
            raise UserError(f"{folder} holds several checkpoints; give one of them, such as {steps[-1].parent}.")
        if not (folder / "metadata.json").exists() or not (folder / ".metadata").exists():
            raise UserError(f"{folder} is not a Megatron checkpoint (metadata.json or .metadata is missing); {_MEND}.")
        super().__init__(folder)
        self.folder = folder
        self.metadata = self.read_metadata()
        self.set_up_storage_reader(self.metadata, is_coordinator=True)
        self.tensors: dict[str, TensorStorageMetadata] = {
            key: value
            for key, value in self.metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata)
        }
        self._check_files()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Unpickle .metadata, letting only DCP's own plain classes be named in it."""
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as stream:
                return _MetadataUnpickler(stream).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); copy the checkpoint again.") from None

    def _check_files(self) -> None:
        ends: dict[str, int] = {}
        for info in self.storage_data.values():
            ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
        for name, end in ends.items():
            path = self.folder / name
            if not path.exists():
                raise UserError(f"{path} is missing; copy the checkpoint again.")
            if path.stat().st_size < end:
                raise UserError(f"{path} is truncated ({path.stat().st_size} of {end} bytes); copy it again.")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> global shape of every tensor."""
        return {key: tuple(value.size) for key, value in self.tensors.items()}

    def read(self, key: str, layer: int | None = None, rows: int | None = None) -> torch.Tensor:
        """Assemble one tensor, or one layer of it, from whatever pieces it was saved in.

        Args:
            key: the global tensor's key.
            layer: index on its first axis, which is dropped; None: the whole tensor.
            rows: only this many rows (a padded vocabulary); None: all. Not with `layer`.

        Returns:
            A tensor of the stored dtype on the CPU.

        Raises:
            UserError: the pieces don't cover it, or can't be read.
        """
        description = self.tensors[key]
        shape = tuple(description.size) if rows is None else (rows, *description.size[1:])
        block = _block(shape, layer)
        target = torch.empty(block.sizes, dtype=description.properties.dtype)
        items = create_read_items_for_chunk_list(key, description, [block])
        if sum(math.prod(item.lengths) for item in items) != target.numel():
            raise UserError(f"{self.folder}: the pieces of {key} don't cover it; copy the checkpoint again.")
        try:
            self.read_data(LoadPlan(items), _TargetPlanner(target)).wait()
        except (OSError, RuntimeError, pickle.UnpicklingError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"{self.folder}: {key} is damaged ({reason}); copy the checkpoint again.") from None
        return target if layer is None else target[0]


class _TargetPlanner(DefaultLoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target = target

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        pairs = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self.target[tuple(slice(start, start + length) for start, length in pairs)]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass


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


def _block(shape: Sequence[int], layer: int | None) -> ChunkStorageMetadata:
    """The whole of `shape`, or one index of its first axis."""
    if layer is None:
        return ChunkStorageMetadata(offsets=torch.Size([0] * len(shape)), sizes=torch.Size(shape))
    offsets, sizes = [layer] + [0] * (len(shape) - 1), [1, *shape[1:]]
    return ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
