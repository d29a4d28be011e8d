"""megatron-core's `torch_dist` directories, read and written by rows, without a process group.

The format is PyTorch's distributed checkpoint (DCP: .metadata and .distcp files) plus megatron-core's
metadata.json (which backend wrote it) and common.pt (what is not sharded; empty here). megatron-core's own
`save` wants a process group, every tensor in memory and forked writers; the files need neither. That megatron-core
loads the result under any layout is tested. Memory is one block of rows; nothing here touches a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import pickle
import struct
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_ultralong.checkpoint.description import DESCRIPTION
from megatron_ultralong.checkpoint.metadata import keeps_common_among_shards, read_metadata
from megatron_ultralong.convert.formats.blob import Place, Window, find_values, write_blob
from megatron_ultralong.convert.formats.handles import unreadable
from megatron_ultralong.convert.formats.row_stream import Files, crc32, cut, raw
from megatron_ultralong.errors import UserError
from megatron_ultralong.families.rules import Shape
from megatron_ultralong.files import read_json

_BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
FILES = (".metadata", "metadata.json", "common.pt", "*.distcp", DESCRIPTION)
"""What a checkpoint folder consists of."""
_DAMAGE = (
    *(OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error),
)
"""What reading damaged bytes as a zip archive and a pickle may raise."""
_AGAIN = "copy the checkpoint again"
_MEND = "give a folder that tools/convert_hf_to_megatron.py or a training run wrote"


@dataclasses.dataclass(frozen=True)
class TensorChunk:
    """A block of a global tensor.

    Attributes:
        key: the global tensor's key.
        shape: the global tensor's shape.
        layer: its index on a prepended layer axis, or None: the piece is the whole tensor.
        dtype: of the tensor.
    """

    key: str
    shape: Shape
    layer: int | None
    dtype: torch.dtype

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """DCP's word for where it lies in the global tensor."""
        if self.layer is None:
            return ChunkStorageMetadata(offsets=torch.Size([0] * len(self.shape)), sizes=torch.Size(self.shape))
        offsets, sizes = [self.layer] + [0] * (len(self.shape) - 1), [1, *self.shape[1:]]
        return ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))


Stored = tuple[TensorChunk, str, int, int]
"""A piece, the file that holds it, its first byte there and its bytes."""


def write_chunks(path: Path, pieces: Iterable[tuple[TensorChunk, Iterator[torch.Tensor]]]) -> list[Stored]:
    """Write a .distcp file: pieces, each given by its rows in order. Returns where each one lies."""
    stored: list[Stored] = []
    with path.open("wb") as stream:
        for piece, rows in pieces:
            offset = stream.tell()
            length = write_blob(stream, piece.dtype, tuple(piece.chunk.sizes), rows)
            stored.append((piece, path.name, offset, length))
        os.fsync(stream.fileno())
    return stored


def write_metadata(folder: Path, stored: Iterable[Stored]) -> None:
    """Complete a checkpoint whose .distcp files are written; the pieces must tile every tensor."""
    tensors: dict[str, TensorStorageMetadata] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for piece, name, offset, length in stored:
        key, name = sys.intern(piece.key), sys.intern(name)  # else a worker's copies would be pickled otherwise
        properties = TensorProperties(dtype=piece.dtype)
        empty = TensorStorageMetadata(properties=properties, size=torch.Size(piece.shape), chunks=[])
        description = tensors.setdefault(key, empty)
        index = MetadataIndex(key, piece.chunk.offsets, len(description.chunks))
        description.chunks.append(piece.chunk)
        storage[index] = _StorageInfo(name, offset, length)
    metadata = Metadata(state_dict_metadata=dict(tensors), storage_data=storage, storage_meta=StorageMeta())
    with (folder / ".metadata").open("wb") as stream:
        pickle.dump(metadata, stream)
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(_BACKEND), encoding="utf-8")


class Reader:
    """A torch_dist directory whose tensors can be read by rows, however they were sharded.

    Attributes:
        folder: the directory.
        checked: compare with the CRC-32 that the files hold, when a piece is first read.
        tensors: key -> DCP's description of every tensor, optimizer state included.
    """

    def __init__(self, folder: Path, checked: bool = False, files: Files | None = None) -> None:
        """Read the description, and check that every file it names is there and whole.

        `files` is what reads, where several readers share their open files.

        Raises:
            UserError: not a torch_dist directory, or files missing or truncated.
        """
        self.folder, self.checked = folder, checked = Path(folder), checked
        steps = sorted(folder.glob("step_*/metadata.json"))
        if not (folder / "metadata.json").exists() and steps:
            raise UserError(f"{folder} holds several checkpoints; give one of them, such as {steps[-1].parent}.")
        if not (folder / "metadata.json").exists() or not (folder / ".metadata").exists():
            raise UserError(f"{folder} is not a Megatron checkpoint (metadata.json or .metadata is missing); {_MEND}.")
        backend = read_json(folder / "metadata.json", "the checkpoint's format", _AGAIN)
        if not isinstance(backend, dict) or {**_BACKEND, **backend} != _BACKEND or "sharded_backend" not in backend:
            raise UserError(f"{folder / 'metadata.json'} says {str(backend)[:200]}, not {_BACKEND}; {_AGAIN}.")
        metadata = read_metadata(folder / ".metadata")
        self.storage: dict[MetadataIndex, _StorageInfo] = metadata.storage_data
        self.tensors: dict[str, TensorStorageMetadata] = {
            key: value
            for key, value in metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata)
        }
        self.files = files or Files()
        self.places: dict[MetadataIndex, Place | None] = {}
        self.own = threading.local()
        self.chunks: dict[tuple[str, int | None], list[tuple[MetadataIndex, Shape, Shape]]] = {}
        self._check_files(keeps_common_among_shards(folder, metadata))

    def __reduce__(self) -> tuple[type[Reader], tuple[Path, bool]]:
        return Reader, (self.folder, self.checked)

    def _check_common(self) -> None:
        """Whether what is not sharded, which is small, is whole."""
        try:
            with zipfile.ZipFile(self.folder / "common.pt") as common:
                damaged = common.testzip()
        except FileNotFoundError:
            raise UserError(f"{self.folder / 'common.pt'} is missing; {_AGAIN}.") from None
        except _DAMAGE as error:
            damaged = str(error)
        if damaged is not None:
            raise UserError(f"{self.folder / 'common.pt'} is damaged ({damaged}); {_AGAIN}.")

    def _check_files(self, common_among_shards: bool) -> None:
        """Sizes of the files of tensors, and what is not sharded."""
        if not common_among_shards:
            self._check_common()
        ends: dict[str, int] = {}
        for info in self.storage.values():
            ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
        for name, end in ends.items():
            path = self.folder / name
            if not path.exists():
                raise UserError(f"{path} is missing; copy the checkpoint again.")
            if path.stat().st_size < end:
                raise UserError(f"{path} is truncated ({path.stat().st_size} of {end} bytes); copy it again.")

    def shapes(self) -> dict[str, Shape]:
        """Key -> global shape of every tensor."""
        return {key: tuple(value.size) for key, value in self.tensors.items()}

    def dtype(self, key: str) -> torch.dtype:
        """The stored dtype of a tensor."""
        dtype: torch.dtype = self.tensors[key].properties.dtype
        return dtype

    def rows(self, key: str, start: int, stop: int, layer: int | None = None) -> torch.Tensor:
        """Some rows of one tensor, or of one layer of it, from whatever pieces it was saved in.

        Args:
            key: the global tensor's key.
            start: the first row.
            stop: behind the last row.
            layer: index on the first axis, which is dropped; None: the tensor has no layer axis.

        Returns:
            [stop - start, ...] of the stored dtype on the CPU; it holds until the thread's next call.

        Raises:
            UserError: the pieces don't cover it, or can't be read.
        """
        size = tuple(self.tensors[key].size)
        shape = (stop - start, *size[1 if layer is None else 2 :])
        target, covered = None, 0
        for index, offsets, sizes in self._chunks(key, layer):
            first, last = max(start, offsets[0]), min(stop, offsets[0] + sizes[0])
            if first >= last:
                continue
            block = self._read(index, key, layer, first - offsets[0], last - offsets[0], sizes)
            covered += block.numel()
            if block.shape == shape:
                target = block
                continue
            if target is None:
                target = torch.empty(shape, dtype=block.dtype)
            columns = tuple(slice(at, at + count) for at, count in zip(offsets[1:], sizes[1:], strict=True))
            target[(slice(first - start, last - start), *columns)] = block
        if target is None or covered != math.prod(shape):
            raise UserError(f"{self.folder}: the pieces of {key} don't cover it; copy the checkpoint again.")
        return target

    def _chunks(self, key: str, layer: int | None) -> list[tuple[MetadataIndex, Shape, Shape]]:
        """The pieces that hold a layer: where they are stored, their offsets and sizes without the layer axis."""
        if (key, layer) in self.chunks:
            return self.chunks[key, layer]
        found = []
        for chunk in self.tensors[key].chunks:
            offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            index = MetadataIndex(key, chunk.offsets)
            if layer is None:
                found.append((index, offsets, sizes))
            elif offsets[0] <= layer < offsets[0] + sizes[0]:
                found.append((index, offsets[1:], sizes[1:]))
        self.chunks[key, layer] = found  # whole: other threads look there
        return found

    def _read(
        self, index: MetadataIndex, key: str, layer: int | None, first: int, last: int, sizes: Shape
    ) -> torch.Tensor:
        """Rows of one piece, all its columns."""
        info, number = self.storage[index], 0 if layer is None else layer - (index.offset or (0,))[0]
        try:
            if index not in self.places:
                with self._open(info) as blob:
                    self.places[index] = find_values(blob)
                self._check(info, self.places[index])
            place = self.places[index]
            if place is None:  # its values don't lie in row order; the rows that follow are asked for next
                if getattr(self.own, "index", None) != index:
                    with self._open(info) as blob:
                        self.own.whole = torch.load(blob, map_location="cpu", weights_only=True)
                    self.own.index = index
                return (self.own.whole if layer is None else self.own.whole[number])[first:last]
        except UserError:
            raise
        except _DAMAGE as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"{self.folder}: {key} is damaged ({reason}); copy the checkpoint again.") from None
        offset = (number * sizes[0] + first) * math.prod(sizes[1:]) * place.dtype.itemsize
        path = self.folder / info.relative_path
        return self.files.read(path, info.offset + place.offset + offset, place.dtype, (last - first, *sizes[1:]))

    def _check(self, info: _StorageInfo, place: Place | None) -> None:
        """Compare a piece's values with their checksum."""
        if place is None or not self.checked:
            return
        path, found = self.folder / info.relative_path, 0
        for start, stop in cut(math.prod(place.shape) * place.dtype.itemsize, 1):
            at = info.offset + place.offset + start
            found = crc32(raw(self.files.read(path, at, torch.uint8, (stop - start,))), found)
        if found != place.checksum:
            raise ValueError(f"{path} does not have the checksum that it was written with")

    @contextlib.contextmanager
    def _open(self, info: _StorageInfo) -> Iterator[IO[bytes]]:
        """One piece's bytes as a file of their own."""
        path = self.folder / info.relative_path
        try:
            stream = path.open("rb")
        except OSError as error:
            raise unreadable(path, error) from None
        with stream:
            yield io.BufferedReader(Window(stream, info.offset, info.length))
