"""The result of one shard on disk: a folder PREFIX.parts/KEY that appears whole or not at all.

It holds `tokens.bin` (of `token_dtype`), `lengths.bin` and `sources.bin` (int32, a document), for chats `mask.bin`
(uint8, a token), `inputs.tsv` (the files that begin in this shard), and `part.json`. A part is made in
KEY.HOST.PID.tmp; the run renames it once it is sure of the tokenizer. Its key names everything that it was made from,
so a part that is there is right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.tokenizing.shards import FileRange
from megatron_ultralong.data.tokenizing.streams import STDIN
from megatron_ultralong.errors import UserError, shown

_LONGEST = np.iinfo(np.int32).max
_MOST_SOURCES = 1 << 16


@dataclasses.dataclass
class Part:
    """A finished part; `part.json` holds these fields."""

    documents: int = 0
    """Documents with at least one token."""
    tokens: int = 0
    """Their tokens."""
    empty: int = 0
    """Documents without a token, which are left out."""
    sources: list[str] = dataclasses.field(default_factory=list)
    """Names that sources.bin refers to."""
    skipped: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)
    """Malformed documents: piece of the shard, line or row within it, and reason."""
    inputs: int = 0
    """Files that begin in this shard."""
    split_chats: int = 0
    """Chats that became a sample for each response."""
    split_samples: int = 0
    """Those samples."""
    bytes_in: int = 0
    """Bytes read, which for standard input nothing else tells."""


def check_sources(names: Collection[str]) -> None:
    """Refuse more sources than a corpus can have.

    Raises:
        UserError: they are too many.
    """
    if len(names) > _MOST_SOURCES:
        raise UserError(
            f"the documents name more than {_MOST_SOURCES} sources, such as '{min(names)}'; "
            "name a field with fewer values with --source-key, or one source with --source."
        )


def read_part(folder: Path) -> Part | None:
    """The part in `folder`, or None if it is not there."""
    try:
        return Part(**json.loads((folder / "part.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def finished(folder: Path) -> Part:
    """The part in `folder`, which is there.

    Raises:
        UserError: somebody removed it.
    """
    part = read_part(folder)
    if part is None:
        raise UserError(f"{folder}: vanished while the corpus was written; run again.")
    return part


class PartWriter:
    """Write one part.

    Args:
        folder: its final name, KEY in PREFIX.parts.
        dtype: of the tokens.
        masks: whether tokens have masks.
        end: an id to put after each document, or None.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], masks: bool, end: int | None = None) -> None:
        self.folder = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.part = Part()
        self._dtype, self._end = dtype, end
        self._sources: dict[str, int] = {}
        self._open = 0  # tokens of the document that has not ended
        with contextlib.ExitStack() as stack:
            names = ["tokens", "lengths", "sources", *(["mask"] if masks else [])]
            self._files = [stack.enter_context((self.folder / f"{name}.bin").open("wb")) for name in names]
            self._inputs = stack.enter_context((self.folder / "inputs.tsv").open("w", encoding="utf-8"))
            self._stack = stack.pop_all()

    def add(
        self,
        ids: npt.NDArray[np.uint32],
        lengths: npt.NDArray[np.int64],
        sources: Sequence[str],
        ends: Sequence[bool] | None = None,
        mask: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Append documents, or pieces of them.

        Args:
            ids: [n], the pieces one after the other.
            lengths: [pieces].
            sources: of the documents that end here.
            ends: whether each piece ends its document; None: all do.
            mask: [n], for chats.

        Raises:
            UserError: a document of 2^31 tokens or more, or too many sources.
        """
        totals, whole = _document_lengths(lengths, ends, self._open)
        bounds = np.cumsum(totals) - self._open  # where each document ends in `ids`
        self._open = int(lengths.sum()) + self._open - int(totals.sum())
        kept = totals > 0
        if self._end is not None and whole:
            ids = np.insert(ids, bounds[kept], self._end)
            if mask is not None:
                mask = np.insert(mask, bounds[kept], np.uint8(0))
            totals = totals + kept
        self._check(totals)
        named = itertools.compress(sources, kept)
        numbers = [self._sources.setdefault(name, len(self._sources)) for name in named]
        self._write(ids, totals[kept], np.array(numbers, dtype="<i4"), mask)
        self.part.documents += int(kept.sum())
        self.part.tokens += int(totals.sum())
        self.part.empty += int((~kept).sum())

    def _check(self, totals: npt.NDArray[np.int64]) -> None:
        longest = max(int(totals.max(initial=0)), self._open)
        if longest > _LONGEST:
            raise UserError(
                f"a document of {longest} tokens does not fit the format, whose longest is {_LONGEST}; split it."
            )
        check_sources(self._sources)

    def _write(self, ids: Any, totals: Any, sources: Any, mask: Any) -> None:
        columns = [ids.astype(self._dtype), totals.astype("<i4"), sources, mask]
        for file, column in zip(self._files, columns, strict=False):
            file.write(np.ascontiguousarray(column).data)

    def add_input(self, file: FileRange) -> None:
        """List a file of the input, with its fingerprint."""
        size = self.part.bytes_in if file.path == STDIN else file.stamp[0]
        self._inputs.write(f"{file.fingerprint()}\t{size}\t{shown(file.path)}\n")
        self.part.inputs += 1

    def abandon(self) -> None:
        """Forget the document that has not ended."""
        tokens = self._files[0]
        tokens.truncate(tokens.seek(-self._open * self._dtype.itemsize, os.SEEK_END))
        self._open = 0

    def finish(self) -> Path:
        """Write part.json and return the temporary folder."""
        assert self._open == 0
        self.part.sources = list(self._sources)
        self._stack.close()
        content = json.dumps(dataclasses.asdict(self.part), ensure_ascii=False)
        (self.folder / "part.json").write_text(content, encoding="utf-8")
        return self.folder

    def discard(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):
            self._stack.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _document_lengths(
    lengths: npt.NDArray[np.int64], ends: Sequence[bool] | None, before: int
) -> tuple[npt.NDArray[np.int64], bool]:
    """Tokens of each document that ends among these pieces, and whether any does."""
    if ends is None:
        assert before == 0
        return lengths, True
    last = np.flatnonzero(np.array(ends, dtype=bool))
    totals = np.diff(np.cumsum(lengths)[last], prepend=-before)
    return totals.astype(np.int64), len(last) > 0


def commit(temporary: Path, folder: Path) -> None:
    """Give a finished part its name; if another run was faster, its part stays, which holds the same bytes."""
    try:
        temporary.rename(folder)
    except OSError:
        if read_part(folder) is None:
            raise
        shutil.rmtree(temporary, ignore_errors=True)
