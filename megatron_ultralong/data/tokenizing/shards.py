"""A piece of input, and the shards of work that the input is cut into.

A shard is a range of lines of a plain JSON Lines file, a range of row groups of a Parquet file, a whole archive or text
file, or several small files together. The cut depends on the files alone, never on the number of workers or machines,
so that every run over the same files finds the same shards; and since shards follow the inputs' order, neither does
the output depend on the cut.

Cost: linear in the files; the footer of each Parquet file is read (`RowGroups` remembers them), and the beginning of
each .json file that is large enough to be cut.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from megatron_ultralong.data.tokenizing import remote, urls
from megatron_ultralong.data.tokenizing.compression import compression
from megatron_ultralong.data.tokenizing.json_file import begins_as_lines
from megatron_ultralong.data.tokenizing.streams import STDIN, unreadable
from megatron_ultralong.errors import UserError, shown
from megatron_ultralong.files import fingerprint

Format = Literal["jsonl", "json", "parquet", "text"]
"""What is in a file; "json": by its content one JSON value, or JSON Lines."""

_SHARD_BYTES = 16 << 20
_SHARD_FILES = 1 << 10  # opening one costs as much as reading some kilobytes
_MOST_SHARDS = 4096
_REQUESTS = 16  # to a store at a time


@dataclasses.dataclass(frozen=True)
class FileRange:
    """A file, or a range of one."""

    path: str
    """The file, its URL, or - for standard input."""
    format: Format
    """What is in it."""
    source: str
    """The source of documents that name none."""
    begin: int
    """First byte (JSON Lines) or row group (Parquet)."""
    end: int | None
    """The byte or row group after the last; None: the whole file."""
    bytes: int
    """Size on disk or in the store, for the progress."""
    stamp: tuple[int, int | str]
    """Size and time of the whole file, of a URL size and etag, which tell that it changed."""

    @property
    def is_lines(self) -> bool:
        """Whether it holds a document a line; of a .json file its beginning says that, which is read."""
        return self.format == "jsonl" or (self.format == "json" and begins_as_lines(self.path))

    def check_unchanged(self) -> None:
        """Refuse a file that is not as it was when the run was planned.

        Raises:
            UserError: it is gone, or its size, time or etag are others.
        """
        if self.path == STDIN:
            return
        stamp = _stamp(self.path)
        if stamp is None:
            raise UserError(
                f"{shown(self.path)}: vanished while the corpus was made; put it back, or run again without it."
            )
        if stamp != self.stamp:
            raise UserError(
                f"{shown(self.path)}: changed while the corpus was made (it had {self.stamp[0]} bytes and has "
                f"{stamp[0]}); run again."
            )

    def fingerprint(self) -> str:
        """What it held: `files.fingerprint`, or of a URL what its store says, its etag; - of standard input."""
        if self.path == STDIN:
            return "-"
        return shown(f"{self.stamp[1]}") or "-" if urls.is_url(self.path) else fingerprint(Path(self.path))


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
        pieces = [
            (urls.absolute(each.path), each.format, each.source, each.begin, each.end, each.stamp)
            for each in self.ranges
        ]
        text = json.dumps({"pieces": pieces, "options": options}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def _stamp(path: str) -> tuple[int, int | str] | None:
    """That of a file or object as it is now; None: it is gone."""
    if urls.is_url(path):
        found = remote.look(path)
        return found.stamp if found else None
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from None
    return status.st_size, status.st_mtime_ns


def for_each(files: Sequence[FileRange], work: Callable[[FileRange], Any]) -> None:
    """Call `work` with each file, with many URLs at a time, since each waits for its store."""
    for file in files:
        if not urls.is_url(file.path):
            work(file)
    with ThreadPoolExecutor(_REQUESTS) as threads:
        for _ in threads.map(work, [file for file in files if urls.is_url(file.path)]):
            pass


RowGroups = Callable[[FileRange], Sequence[int]]
"""Bytes of each row group of a Parquet file."""


def plan_shards(files: Sequence[FileRange], row_groups: RowGroups) -> list[Shard]:
    """Cut files into shards of 16 MiB or more, such that there are hardly more than 4,096 of those.

    Of small files no more than 1,024 are put together, so that their shards can be shared out too.

    Raises:
        UserError: a file cannot be read.
    """
    total, size = sum(piece.bytes for piece in files), _SHARD_BYTES
    while total > size * _MOST_SHARDS:
        size *= 2
    shards: list[Shard] = []
    small: list[FileRange] = []
    held = 0
    for file in files:
        for piece in _cut(file, size, row_groups):
            if small and (held + piece.bytes > size or len(small) == _SHARD_FILES):
                shards.append(Shard(tuple(small)))
                small, held = [], 0
            small.append(piece)
            held += piece.bytes
    return [*shards, Shard(tuple(small))] if small else shards


def _cut(file: FileRange, size: int, row_groups: RowGroups) -> Iterator[FileRange]:
    if file.format == "parquet":
        begin, total = 0, 0
        groups = row_groups(file)
        for i, each in enumerate(groups):
            total += each
            if total >= size or i + 1 == len(groups):
                yield dataclasses.replace(file, begin=begin, end=i + 1, bytes=total)
                begin, total = i + 1, 0
        if not groups:
            yield dataclasses.replace(file, end=0)
    elif file.bytes > size and not compression(file.path) and file.is_lines:
        for begin in range(0, file.bytes, size):
            end = min(begin + size, file.bytes)
            yield dataclasses.replace(file, format="jsonl", begin=begin, end=end, bytes=end - begin)
    else:
        yield file
