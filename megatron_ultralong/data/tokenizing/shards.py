"""Which files a corpus is made from, and the shards of work they are cut into.

Inputs are files, folders (taken whole, in the order of their names), globs, or - for standard input. A shard is a range
of lines of a plain JSON Lines file, a range of row groups of a Parquet file, a whole archive or text file, or several
small files together. The cut depends on the files alone, never on the number of workers or machines, so that every run
over the same files finds the same shards; and since shards follow the inputs' order, neither does the output depend on
the cut.

Cost: one stat a file, and the footer of each Parquet file.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from megatron_ultralong.data.tokenizing.documents import file_source
from megatron_ultralong.data.tokenizing.streams import STDIN
from megatron_ultralong.errors import UserError

Format = Literal["jsonl", "parquet", "text"]

_ENDINGS: dict[str, Format] = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "jsonl"),
    ".parquet": "parquet",
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), "text"),
}
_SHARD_BYTES = 16 << 20
_MOST_SHARDS = 4096


@dataclasses.dataclass(frozen=True)
class FileRange:
    """A file, or a range of one."""

    path: str
    """The file, or - for standard input."""
    format: Format
    """What is in it."""
    source: str
    """The source of documents that name none."""
    begin: int
    """First byte (JSON Lines) or row group (Parquet)."""
    end: int | None
    """The byte or row group after the last; None: the whole file."""
    bytes: int
    """Size on disk, for the progress."""
    stamp: tuple[int, int]
    """Size and time of the whole file, which tell that it changed."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Work that one worker does at a time, and what can be kept after a crash."""

    ranges: tuple[FileRange, ...]
    """In the order of the corpus."""

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(piece.bytes for piece in self.ranges)

    def key(self, options: dict[str, Any]) -> str:
        """Names the shard's result: a hash of its pieces and of everything else that it depends on."""
        pieces = [{**dataclasses.asdict(piece), "path": os.path.abspath(piece.path)} for piece in self.ranges]
        text = json.dumps({"pieces": pieces, "options": options}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def find_files(inputs: Sequence[Path | str], format: Format | Literal["auto"] = "auto") -> list[FileRange]:
    """The files that `inputs` name, each as one whole piece.

    Raises:
        UserError: an input is missing, empty of files, or named twice; a file's ending does not say its format.
    """
    files: list[FileRange] = []
    for each in inputs:
        files += _expand(str(each), format)
    if not files:
        raise UserError("--input: names no file; give files, folders or globs.")
    seen: set[str] = set()
    for piece in files:
        path = os.path.realpath(piece.path)
        if path in seen:
            raise UserError(f"{piece.path}: is named twice by --input; name it once.")
        seen.add(path)
    return files


def _expand(name: str, format: Format | Literal["auto"]) -> Iterator[FileRange]:
    if name == STDIN:
        known = "jsonl" if format == "auto" else format
        if known == "parquet":
            raise UserError("--input -: Parquet cannot be read from standard input; name its files.")
        yield FileRange(STDIN, known, "stdin", 0, None, 0, (0, 0))
        return
    path = Path(name)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))
        taken = [file for file in found if format != "auto" or _format(file)]
        if not taken:
            what = f"none of its {len(found)} files ends in {', '.join(_ENDINGS)}" if found else "has no file in it"
            raise UserError(f"{path}: {what}; name another folder, or say --input-format.")
        for file in taken:
            yield _whole(file, format, file.parent.resolve().name)
    elif path.is_file():
        yield _whole(path, format, file_source(path))
    elif matches := sorted(glob.glob(name, recursive=True)):
        for match in matches:
            if os.path.isfile(match):
                yield _whole(Path(match), format, file_source(Path(match)))
    elif glob.has_magic(name):
        raise UserError(f"{name}: matches no file; name an input that exists.")
    else:
        raise UserError(f"{path}: the input is missing; name a file that exists.")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _format(path: Path) -> Format | None:
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return _ENDINGS.get(os.path.splitext(name)[1])


def _whole(path: Path, format: Format | Literal["auto"], source: str) -> FileRange:
    known = _format(path) if format == "auto" else format
    if known is None:
        raise UserError(
            f"{path}: its ending does not say what is in it (known: {', '.join(_ENDINGS)}, and .gz and .zst of "
            "text and JSON Lines); rename it, or say --input-format."
        )
    status = path.stat()
    if known == "parquet" and path.name.endswith((".gz", ".zst")):
        raise UserError(f"{path}: Parquet compresses itself and cannot be read from an archive; decompress the file.")
    return FileRange(str(path), known, source, 0, None, status.st_size, (status.st_size, status.st_mtime_ns))


def plan_shards(files: Sequence[FileRange]) -> list[Shard]:
    """Cut files into shards of 16 MiB or more, such that there are hardly more than 4,096 of those."""
    size = _SHARD_BYTES
    while sum(piece.bytes for piece in files) > size * _MOST_SHARDS:
        size *= 2
    shards: list[Shard] = []
    small: list[FileRange] = []
    for file in files:
        for piece in _cut(file, size):
            if small and sum(each.bytes for each in small) + piece.bytes > size:
                shards.append(Shard(tuple(small)))
                small = []
            small.append(piece)
    return [*shards, Shard(tuple(small))] if small else shards


def _cut(file: FileRange, size: int) -> Iterator[FileRange]:
    if file.format == "parquet":
        from megatron_ultralong.data.tokenizing.parquet import row_group_bytes

        begin, total = 0, 0
        groups = row_group_bytes(file.path)
        for i, each in enumerate(groups):
            total += each
            if total >= size or i + 1 == len(groups):
                yield dataclasses.replace(file, begin=begin, end=i + 1, bytes=total)
                begin, total = i + 1, 0
    elif file.format == "jsonl" and file.bytes > size and not file.path.endswith((".gz", ".zst")):
        for begin in range(0, file.bytes, size):
            end = min(begin + size, file.bytes)
            yield dataclasses.replace(file, begin=begin, end=end, bytes=end - begin)
    else:
        yield file
