"""Reading and writing megatron-core's IndexedDataset (.bin and .idx) without importing megatron.core.

megatron.core's own module imports the whole of megatron.core, which preprocessing has no use for. The format, little-
endian, .idx: magic, u64 version 1, u8 dtype code, u64 sequences, u64 documents + 1, i32 lengths, i64 byte offsets,
i64 document bounds; .bin: the tokens. Here every sequence is one document. A test reads our files with their reader and
theirs with ours.

Cost: `IndexedWriter` keeps 4 bytes a document in memory, `write_index` nothing; reading maps both files and copies
nothing.
"""

from __future__ import annotations

import array
import dataclasses
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from megatron_ultralong.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
CODES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_LONGEST = np.iinfo(np.int32).max


def bin_path(prefix: Path) -> Path:
    """PREFIX.bin, the tokens."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: Path) -> Path:
    """PREFIX.idx, lengths and offsets of the documents."""
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype megatron-core chooses: uint16 under 65,500 ids, else int32."""
    return np.dtype("<u2" if vocab_size < 65500 else "<i4")


class IndexedWriter:
    """Append documents to an open .bin, then write the .idx.

    Args:
        stream: the .bin, open for binary writing.
        dtype: of the tokens on disk.
    """

    def __init__(self, stream: BinaryIO, dtype: np.dtype[Any]) -> None:
        self._stream = stream
        self.dtype = np.dtype(dtype)
        self._lengths = array.array("i")

    def add(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> None:
        """Append documents.

        Args:
            tokens: integers [n], the documents one after the other.
            lengths: int64 [documents], summing to n.

        Raises:
            UserError: a document of 2^31 tokens or more, which the format cannot hold.
        """
        if len(lengths) and int(lengths.max()) > _LONGEST:
            raise UserError(
                f"{self._stream.name}: a document of {int(lengths.max())} tokens does not fit the format, "
                f"whose longest is {_LONGEST}; split it."
            )
        self._stream.write(np.ascontiguousarray(tokens, dtype=self.dtype).data)
        self._lengths.extend(lengths.tolist())

    def write_index(self, path: Path) -> None:
        """Write the .idx for what was added."""
        lengths = np.array(self._lengths, dtype="<i4")
        write_index(path, self.dtype, len(lengths), lambda: [lengths])


def write_index(
    path: Path,
    dtype: np.dtype[Any],
    count: int,
    lengths: Callable[[], Iterable[npt.NDArray[np.int32]]],
    offsets: Iterable[npt.NDArray[np.int64]] | None = None,
) -> None:
    """Write an .idx in memory of one array of lengths.

    Args:
        path: of the .idx.
        dtype: of the tokens on disk.
        count: documents.
        lengths: gives all lengths anew, in arrays of any sizes, each time it is called.
        offsets: the byte at which each document begins, in arrays of any sizes; None: each where the last one ends.
    """
    code = next(code for code, name in CODES.items() if np.dtype(name) == dtype)
    with path.open("wb") as stream:
        stream.write(HEADER.pack(MAGIC, 1, code, count, count + 1))
        for some in lengths():
            stream.write(np.ascontiguousarray(some, dtype="<i4").data)
        for starts in _following(lengths(), dtype.itemsize) if offsets is None else offsets:
            stream.write(np.ascontiguousarray(starts, dtype="<i8").data)
        for first in range(0, count + 1, 1 << 20):
            stream.write(np.arange(first, min(first + (1 << 20), count + 1), dtype="<i8").data)


def _following(lengths: Iterable[npt.NDArray[Any]], itemsize: int) -> Iterator[npt.NDArray[np.int64]]:
    """Byte offsets of documents that lie one behind the other."""
    start = 0
    for some in lengths:
        ends: npt.NDArray[np.int64] = np.cumsum(some, dtype=np.int64) + start
        yield (ends - some) * itemsize
        start = int(ends[-1]) if len(ends) else start


@dataclasses.dataclass(frozen=True)
class IndexedTokens:
    """The documents of PREFIX.bin and PREFIX.idx, memory-mapped."""

    tokens: npt.NDArray[Any]
    """Every token on disk, in the file's dtype [n]."""
    lengths: npt.NDArray[np.int32]
    """int32 [documents] (mapped from an odd address: use it through numpy or the C++ kernels)."""
    offsets: npt.NDArray[np.int64]
    """int64 [documents]: byte at which each document begins."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> npt.NDArray[Any]:
        start = int(self.offsets[document]) // self.tokens.itemsize
        return self.tokens[start : start + int(self.lengths[document])]


def open_indexed(prefix: Path) -> IndexedTokens:
    """Map PREFIX.bin and PREFIX.idx.

    Raises:
        UserError: a file is missing, truncated, or not an IndexedDataset of one sequence a document.
    """
    for path in (bin_path(prefix), idx_path(prefix)):
        if not path.is_file():
            raise UserError(f"{path}: the tokens are missing; write them with tools/preprocess_data.py.")
    dtype, lengths, offsets = map_index(idx_path(prefix))
    size = bin_path(prefix).stat().st_size
    end = int(offsets[-1]) + int(lengths[-1]) * dtype.itemsize
    if end != size:
        raise UserError(
            f"{bin_path(prefix)}: holds {size} bytes where its .idx describes {end}; "
            "write the tokens again with tools/preprocess_data.py."
        )
    return IndexedTokens(np.memmap(bin_path(prefix), dtype=dtype, mode="r"), lengths, offsets)


def map_index(path: Path) -> tuple[np.dtype[Any], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Token dtype, lengths and byte offsets of an .idx of one sequence a document, mapped.

    Raises:
        UserError: it is truncated, or something else.
    """
    dtype, count = _read_header(path)
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    start = HEADER.size
    return dtype, raw[start : start + 4 * count].view("<i4"), raw[start + 4 * count : start + 12 * count].view("<i8")


def _read_header(path: Path) -> tuple[np.dtype[Any], int]:
    """Token dtype and number of documents."""
    with path.open("rb") as stream:
        header = stream.read(HEADER.size)
    again = "write the tokens again with tools/preprocess_data.py"
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise UserError(f"{path}: is not the index of an IndexedDataset; {again}.")
    _, version, code, count, bounds = HEADER.unpack(header)
    if version != 1 or code not in CODES or bounds != count + 1:
        raise UserError(
            f"{path}: version {version}, dtype code {code}, {count} sequences in {bounds - 1} documents is not "
            f"version 1 with one sequence a document; {again}."
        )
    expected = HEADER.size + count * 12 + bounds * 8
    if count == 0 or path.stat().st_size != expected:
        raise UserError(f"{path}: is empty or truncated ({path.stat().st_size} of {expected} bytes); {again}.")
    return np.dtype(CODES[code]), count
