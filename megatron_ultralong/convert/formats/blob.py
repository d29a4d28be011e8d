"""One tensor as torch.save writes it, streamed: the unit that .distcp files consist of.

torch.save and torch.load want whole tensors in memory; a blob is a zip archive of a small pickle and one
uncompressed record, which can be written and read by rows. What torch.load makes of a written blob, and that
torch.save's own blobs are read alike, is tested. No pickle is executed: the reader knows the few names that a plain
tensor consists of, and leaves everything else to torch.load(weights_only=True).
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable
from typing import IO, Any

import torch

from megatron_ultralong.convert.formats.row_stream import portions, raw
from megatron_ultralong.families.rules import Shape

_STORAGES = {torch.float32: "FloatStorage", torch.bfloat16: "BFloat16Storage", torch.float16: "HalfStorage"}
_DTYPES = {name: dtype for dtype, name in _STORAGES.items()}
_LOCAL_HEADER = 30


class _Counted:
    """A stream that only writes, and counts: zipfile then counts offsets from the blob's own beginning."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.size = stream, 0

    def write(self, data: Any) -> int:
        self.stream.write(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self.stream.flush()


@dataclasses.dataclass(frozen=True)
class _Rebuild:
    """Pickles as the call that torch.save writes for a contiguous tensor."""

    dtype: torch.dtype
    shape: Shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        storage = _Storage(self.dtype, math.prod(self.shape))
        return torch._utils._rebuild_tensor_v2, (storage, 0, self.shape, strides, False, collections.OrderedDict())


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    elements: int


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        return ("storage", getattr(torch, _STORAGES[value.dtype]), "0", "cpu", value.elements)


def write_blob(stream: IO[bytes], dtype: torch.dtype, shape: Shape, rows: Iterable[torch.Tensor]) -> int:
    """Append a tensor, given by its rows in order.

    Returns:
        Bytes written.
    """
    description = io.BytesIO()
    _Pickler(description, protocol=2).dump(_Rebuild(dtype, shape))
    counted: Any = _Counted(stream)
    with zipfile.ZipFile(counted, "w") as archive:
        for name, content in (("data.pkl", description.getvalue()), ("byteorder", b"little")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
        size = math.prod(shape) * dtype.itemsize
        with archive.open(zipfile.ZipInfo("archive/data/0"), "w", force_zip64=size >= 1 << 31) as record:
            for block in rows:
                for portion in portions(raw(block)):
                    record.write(portion)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
    written: int = counted.size
    return written


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a blob's values lie.

    Attributes:
        offset: first byte in the blob.
        dtype: of the values.
        shape: of the tensor, whose values lie in row order.
        checksum: CRC-32 of the values' bytes.
    """

    offset: int
    dtype: torch.dtype
    shape: Shape
    checksum: int


def find_values(blob: IO[bytes]) -> Place | None:
    """Where the values of a blob lie, or None: not a plain contiguous tensor that fills its storage.

    Raises:
        zipfile.BadZipFile, pickle.UnpicklingError, and what damaged bytes may raise besides.
    """
    with zipfile.ZipFile(blob) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        record = archive.getinfo(names["data/0"])
        byteorder = archive.read(names["byteorder"]) if "byteorder" in names else b"little"
        try:
            found = _Unpickler(io.BytesIO(archive.read(names["data.pkl"]))).load()
        except _NotPlainError:
            return None
    if not isinstance(found, _Tensor) or byteorder != b"little" or record.compress_type != zipfile.ZIP_STORED:
        return None
    dtype, elements = found.storage
    plain = _Rebuild(dtype, tuple(found.shape)).__reduce__()[1]
    if (found.start, tuple(found.strides)) != (0, plain[3]) or elements != math.prod(found.shape):
        return None
    blob.seek(record.header_offset + 26)
    name, extra = struct.unpack("<HH", blob.read(4))
    return Place(record.header_offset + _LOCAL_HEADER + name + extra, dtype, tuple(found.shape), record.CRC)


class _NotPlainError(Exception):
    """The pickle names more than a plain tensor does."""


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """The arguments of torch._utils._rebuild_tensor_v2."""

    storage: tuple[torch.dtype, int]
    start: int
    shape: Shape
    strides: Shape
    requires_grad: bool
    hooks: Any
    metadata: Any = None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, value: Any) -> Any:
        _, storage, _, _, elements = value
        return _DTYPES[storage], elements

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _DTYPES:
            return name
        raise _NotPlainError(f"{module}.{name}")


class Window(io.RawIOBase):
    """A part of a file as a file of its own, to read."""

    def __init__(self, stream: IO[bytes], offset: int, length: int) -> None:
        self.stream, self.offset, self.length, self.at = stream, offset, length, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of a file."""
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence]
        if self.at < 0:
            raise ValueError(f"position {self.at} is before the beginning")
        return self.at

    def readinto(self, buffer: Any) -> int:
        """As of a file; what lies behind the part is not there."""
        self.stream.seek(self.offset + self.at)
        data = self.stream.read(max(0, min(len(buffer), self.length - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)
