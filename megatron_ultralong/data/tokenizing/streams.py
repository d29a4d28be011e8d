"""Bytes of an input in blocks, and blocks into whole lines: plain files and ranges of them, archives, URLs, stdin.

Memory: two blocks, or two times the longest line; of a line over `LONGEST_LINE` no more than that is held.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from megatron_ultralong.data.tokenizing import remote, urls
from megatron_ultralong.data.tokenizing.compression import compression, unpacked
from megatron_ultralong.errors import UserError, shown

STDIN = "-"
"""The path that means standard input."""

LONGEST_LINE = 1 << 29
"""Bytes; a longer line comes cut, and is refused for its length: as JSON it would take several gigabytes to read."""

_BLOCK = 1 << 22


class _Stdin:
    """Standard input, whose beginning can be looked at before it is read."""

    def __init__(self) -> None:
        self._head: bytes | None = None

    def peek(self) -> bytes:
        if self._head is None:
            self._head = sys.stdin.buffer.read(_BLOCK)
        return self._head

    def blocks(self) -> Iterator[bytes]:
        yield self.peek()
        yield from _read(sys.stdin.buffer, None)


_stdin = _Stdin()


def byte_blocks(
    path: str,
    begin: int = 0,
    end: int | None = None,
    *,
    peek: bool = False,
    count: Callable[[int], Any] | None = None,
    block: int = _BLOCK,
) -> Iterator[bytes]:
    """Yield a file's bytes, decompressed by its ending.

    Args:
        path: a file, its URL, or `STDIN`.
        begin: first byte (of a plain file only).
        end: the byte after the last one; None: the end of the file.
        peek: of `STDIN`, look at the beginning only, and leave it to be read.
        count: called with the number of bytes of every block that is read from the disk.
        block: bytes of the first block; each is at most twice the one before, and at most 4 MiB.

    Raises:
        StreamError: it is damaged.
        UserError: it cannot be read.
    """
    try:
        if path == STDIN:
            yield from _counted(iter([_stdin.peek()]) if peek else _stdin.blocks(), count)
            return
        source: Any = remote.opened(path, block, end) if urls.is_url(path) else open(path, "rb")
        with source as stream:
            if ending := compression(path):
                yield from unpacked(stream, ending, count or (lambda size: None))
            else:
                stream.seek(begin)
                yield from _counted(_read(stream, None if end is None else end - begin, block), count)
    except OSError as error:
        raise unreadable(path, error) from None


def look_size(path: str) -> int:
    """Bytes of the first block, where a few bytes of a file are looked at: of a disk they cost the same."""
    return remote.SMALL if urls.is_url(path) else _BLOCK


def unreadable(path: str, error: OSError) -> UserError:
    """The sentence for an input that the system does not let us read."""
    return UserError(f"{shown(path)}: cannot be read ({error.strerror or error}); mend its permissions or its disk.")


def _counted(blocks: Iterator[bytes], count: Callable[[int], Any] | None) -> Iterator[bytes]:
    for block in blocks:
        yield block
        if count is not None:
            count(len(block))


def _read(stream: BinaryIO | io.BufferedIOBase, limit: int | None, size: int = _BLOCK) -> Iterator[bytes]:
    left = limit
    while block := stream.read(size if left is None else min(size, left)):
        yield block
        size = min(2 * size, _BLOCK)
        if left is not None:
            left -= len(block)


def line_blocks(blocks: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Yield lists of whole lines, without their newlines; empty lines are kept, an empty end is not.

    Of a line that is longer than `LONGEST_LINE` comes a beginning that is.
    """
    rest: list[bytes] = []
    held = 0
    for block in blocks:
        end = block.rfind(b"\n")
        if end < 0:
            if block and held <= LONGEST_LINE:
                rest.append(block)
                held += len(block)
            continue
        begin = 0 if held <= LONGEST_LINE else block.find(b"\n")
        rest.append(block[begin:end])
        whole = b"".join(rest)
        rest = [block[end + 1 :]] if end + 1 < len(block) else []
        held = len(block) - end - 1
        lines = whole.split(b"\n")
        del block, whole
        yield lines
        del lines
    if rest:
        whole = b"".join(rest)
        del rest
        yield [whole]


def range_lines(
    path: str, begin: int, end: int | None, count: Callable[[int], Any] | None = None
) -> Iterator[list[bytes]]:
    """Yield the lines of a plain file that begin in [begin, end), in lists; each line belongs to one range."""
    first = line_start(path, begin) if begin else 0
    if end is not None:
        end = line_start(path, end)
        if first >= end:
            return iter(())
    return line_blocks(byte_blocks(path, first, end, count=count))


def line_start(path: str, place: int) -> int:
    """Byte at which the first line begins that begins at `place` or later; the file's size if none does."""
    at = place - 1
    for block in byte_blocks(path, place - 1, block=look_size(path)):
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
    return at


class LineNumbers:
    """Numbers of lines in large files; asked in the order of the files, it reads each only once."""

    def __init__(self) -> None:
        self._path, self._byte, self._lines = "", 0, 0

    def before(self, path: str, begin: int) -> int:
        """Lines before the first one that begins at `begin` or later."""
        end = line_start(path, begin) if begin else 0
        if path != self._path or end < self._byte:
            self._path, self._byte, self._lines = path, 0, 0
        self._lines += sum(block.count(b"\n") for block in byte_blocks(path, self._byte, end))
        self._byte = end
        return self._lines
