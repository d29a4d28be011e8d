"""The token files of an adopted corpus: they stay where others wrote them, and are mapped as if they were one .bin.

PREFIX.inputs.tsv names them, and PREFIX.idx gives the bytes at which documents begin in all of them laid one behind the
other, each from a multiple of 64 KiB on (`starts`), which every machine's page divides. So several files become one
range of addresses and whoever reads documents by lengths and offsets reads them as it reads PREFIX.bin. With one file
PREFIX.idx is a valid .idx of it. Nothing is copied; opening costs a mapping a file, and checking at most 4 MiB of
reading a file, in all not over 64 MiB and 128 KiB a file.

A file that is truncated while it is mapped ends the process with SIGBUS, as PREFIX.bin would.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus.indexed_dataset import IndexedTokens, map_index
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import fingerprint

_ALIGN = 1 << 16
_BLOCKS = 1 << 10  # of 64 KiB, read of all files together for their fingerprints
_AGAIN = "bring it back, or adopt it again with tools/preprocess_data.py --adopt"


@dataclasses.dataclass(frozen=True)
class AdoptedFile:
    """One file of tokens that somebody else wrote."""

    path: Path
    """Where it is."""
    bytes: int
    """Its size."""
    fingerprint: str
    """Of its content (`files.fingerprint`, of as many blocks as `blocks_of` says)."""


def blocks_of(files: int) -> int:
    """How many blocks of each of so many files are read for its fingerprint."""
    return max(2, min(64, _BLOCKS // files))


def starts(sizes: Sequence[int]) -> list[int]:
    """The byte at which each file begins, and where all end."""
    found = [0]
    for size in sizes:
        found.append(found[-1] + -(-size // _ALIGN) * _ALIGN)
    return found


def write_adopted(path: Path, files: Sequence[AdoptedFile], final: Path) -> None:
    """Write an inputs.tsv; paths are relative to the folder of `final`, the name that `path` will get."""
    folder = final.parent.resolve()
    lines = [f"{file.fingerprint}\t{file.bytes}\t{os.path.relpath(file.path.resolve(), folder)}\n" for file in files]
    path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def read_adopted(path: Path) -> list[AdoptedFile]:
    """What `write_adopted` wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    files = []
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        for line in text.split("\n")[:-1]:
            known, size, relative = line.split("\t", 2)
            files.append(AdoptedFile(Path(os.path.normpath(path.parent.resolve() / relative)), int(size), known))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the list of the adopted files cannot be read ({error}); {_AGAIN}.") from None
    return files


def adopted_fingerprint(index: Path, files: Sequence[AdoptedFile]) -> str:
    """SHA-256 of what a packed index depends on: the .idx and the files' own fingerprints, wherever they lie."""
    return hashlib.sha256(" ".join([fingerprint(index), *(file.fingerprint for file in files)]).encode()).hexdigest()


def check_unchanged(files: Sequence[AdoptedFile]) -> None:
    """Refuse a file whose content is another than the one that was adopted.

    Raises:
        UserError: the first such file, by name.
    """
    for file in files:
        if fingerprint(file.path, blocks_of(len(files))) != file.fingerprint:
            raise UserError(f"{file.path}: is not the file that was adopted, its tokens are others; {_AGAIN}.")


def open_adopted(index: Path, files: Sequence[AdoptedFile]) -> IndexedTokens:
    """Map the files, and the .idx over them.

    Raises:
        UserError: a file is missing or of another size, or the .idx is damaged.
    """
    if not index.is_file():
        raise UserError(f"{index}: the index of the adopted tokens is missing; {_AGAIN}.")
    dtype, lengths, offsets = map_index(index)
    for file in files:
        try:
            size = file.path.stat().st_size
        except OSError as error:
            raise UserError(f"{file.path}: the adopted tokens cannot be read ({error.strerror}); {_AGAIN}.") from None
        if size != file.bytes:
            raise UserError(f"{file.path}: holds {size} bytes and held {file.bytes} when it was adopted; {_AGAIN}.")
    return IndexedTokens(map_joined([file.path for file in files], dtype), lengths, offsets)


def map_joined(paths: Sequence[Path], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The tokens of several files, each from its `starts` on, in one read-only array; between them are zeros.

    Raises:
        UserError: the system refuses a mapping.
    """
    if len(paths) == 1:
        return np.memmap(paths[0], dtype=dtype, mode="r")
    places = starts([path.stat().st_size for path in paths])
    whole = mmap.mmap(-1, places[-1], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    array = np.frombuffer(whole, dtype=np.uint8)  # keeps `whole`, which unmaps all that lies in it
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for path, place in zip(paths, places, strict=False):
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            where = array.ctypes.data + place
            fixed = 0x10  # MAP_FIXED, which Python's mmap does not name
            if size and libc.mmap(where, size, mmap.PROT_READ, mmap.MAP_SHARED | fixed, stream.fileno(), 0) != where:
                raise UserError(f"{path}: cannot be mapped ({os.strerror(ctypes.get_errno())}); adopt fewer files.")
    return array.view(dtype)
