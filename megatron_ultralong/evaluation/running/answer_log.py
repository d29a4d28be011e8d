"""The files of a run that is under way: lines appended one by one, and which samples they answer already.

A line is one write, so that a kill tears at most the last one, which is cut off when the run goes on. The folder is
locked by its one writer. A power cut loses a second of answers at most.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.run_folder import SAMPLES, WINDOWS, read_lines
from megatron_ultralong.files import disk_errors_named

Key = tuple[str, int, int, str]
"""Task, length, index and prompt hash: what is not asked again."""


@dataclasses.dataclass(frozen=True)
class Tally:
    """What tables need of an answered sample."""

    score: float
    depth: float | None
    how: str
    budget: int
    empty: bool
    finished: bool
    over_budget: bool
    seconds: float


class LineFile:
    """An append-only file of JSON lines; a torn last line is cut off when it is opened.

    Raises:
        UserError: another process has it open, or the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors_named(path):
            self._stream = path.open("ab")
            self._lock()
            os.truncate(path, _whole_bytes(path))
        self._synced = time.monotonic()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"{self.path.parent}: another process is writing this run; wait for it, or name another folder."
                ) from None  # a file system without locks is let pass

    def append(self, row: Any) -> None:
        """Write a dataclass or a dictionary as one line."""
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
        with disk_errors_named(self.path):
            self._stream.write(line)
            self._stream.flush()
            if time.monotonic() - self._synced > 1:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()

    def close(self) -> None:
        """Have all on the disk, and let others write."""
        with disk_errors_named(self.path):
            os.fsync(self._stream.fileno())
            self._stream.close()


def _whole_bytes(path: Path) -> int:
    """Bytes up to the end of the last whole line that is JSON."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        end, block = size, b""
        while end > 0 and b"\n" not in block[:-1]:
            begin = max(0, end - (1 << 16))
            stream.seek(begin)
            block = stream.read(end - begin) + block
            end = begin
    torn = block[block.rfind(b"\n") + 1 :]
    if torn:
        return size - len(torn)
    last = block[block.rfind(b"\n", 0, -1) + 1 :]
    try:
        orjson.loads(last or b"{}")
    except orjson.JSONDecodeError:
        return size - len(last)
    return size


def tally_of(row: dict[str, Any]) -> Tally:
    """From a line of samples.jsonl."""
    return Tally(
        score=float(row["score"]),
        depth=row["depth"],
        how=row["how"],
        budget=row["budget"],
        empty=row["answer"] is not None and not row["answer"].strip(),
        finished=row["finished"],
        over_budget=row["over_budget"],
        seconds=float(row["seconds"]),
    )


def key_of(row: dict[str, Any]) -> Key:
    """Of a line of either file."""
    return row["task"], row["length"], row["index"], row["prompt_hash"]


class RunLog:
    """Both files of a run, for the one process that writes."""

    def __init__(self, folder: Path) -> None:
        self._samples = LineFile(folder / SAMPLES)
        self._windows = LineFile(folder / WINDOWS)
        self.answered: dict[Key, Tally] = {}
        """Of the lines that are there."""
        self.read: dict[Key, tuple[list[list[float]], float]] = {}
        """Buckets and seconds of the windows that are there."""
        for row in _rows(folder / SAMPLES):
            self.answered[key_of(row)] = tally_of(row)
        for row in _rows(folder / WINDOWS):
            self.read[key_of(row)] = (row["buckets"], row["seconds"])

    def add_sample(self, row: dict[str, Any]) -> None:
        """A line of samples.jsonl."""
        self._samples.append(row)
        self.answered[key_of(row)] = tally_of(row)

    def add_window(self, row: dict[str, Any]) -> None:
        """A line of windows.jsonl."""
        self._windows.append(row)
        self.read[key_of(row)] = (row["buckets"], row["seconds"])

    def close(self) -> None:
        """Let go of both."""
        self._samples.close()
        self._windows.close()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Their lines, one after the other.

    Raises:
        UserError: a line lacks a field.
    """
    for number, row in enumerate(read_lines(path), start=1):
        try:
            _ = key_of(row), row["seconds"], (tally_of(row) if path.name == SAMPLES else row["buckets"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number}: it is no line of a run ({error!r}); take it out, or begin the run anew."
            ) from None
        yield row
