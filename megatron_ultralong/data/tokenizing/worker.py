"""Tokenize one shard: what a worker process runs, and what a single process runs itself.

A worker shares nothing with the others but a counter of bytes, one of shards, and an order to stop. Where there are
fewer shards left than cores, it encodes long texts on the others' cores too. It ends when its parent does, also
when that was killed. Errors come back as sentences; only a bug brings its traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import multiprocessing.connection
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from megatron_ultralong.data.corpus.indexed_dataset import token_dtype
from megatron_ultralong.data.tokenizer.chat import ChatTokenizer, Learnt
from megatron_ultralong.data.tokenizer.encoders import Encoder, GigatokenEncoder, Recipe, reference_encoder
from megatron_ultralong.data.tokenizer.tokenizer import torch_hidden
from megatron_ultralong.data.tokenizing import urls
from megatron_ultralong.data.tokenizing.parts import PartWriter
from megatron_ultralong.data.tokenizing.readers import DocumentBatch, Reading, read_range
from megatron_ultralong.data.tokenizing.recheck import Samples
from megatron_ultralong.data.tokenizing.shards import FileRange, Shard
from megatron_ultralong.data.tokenizing.streams import STDIN, LineNumbers
from megatron_ultralong.errors import MalformedError, UserError, shown
from megatron_ultralong.files import disk_error

T = TypeVar("T")


class StoppedError(Exception):
    """The run was told to stop."""


class RefusedError(Exception):
    """gigatoken refuses the tokenizer."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What every shard of a run has in common."""

    reading: Reading
    """How documents are read; `cuts` follow from the encoder."""
    skip: bool
    """Whether malformed documents are left out and listed, or stop the run."""
    end: int | None
    """Id to put after each document."""
    recipe: Recipe
    """The tokenizer."""
    fast: bool
    """Whether gigatoken encodes, or the reference."""
    chat_folder: Path | None
    """For chats: folder of the tokenizer that renders them."""
    processes: int
    """How many there are."""
    workers: int
    """Cores to keep busy."""
    mask: Learnt = "all"
    """For chats: which responses are learnt."""
    chat_date: str = ""
    """For chats: the date that templates print."""


class Worker:
    """A process's own encoder, and what it shares with the run."""

    def __init__(self, job: Job, counter: Any, left: Any, stop: Any) -> None:
        self.job, self.counter, self.left, self.stop = job, counter, left, stop
        self.each_batch: Callable[[], None] = lambda: None
        self._chats: ChatTokenizer | None = None
        self._encoder: Encoder | None = None
        if job.chat_folder is not None:
            with torch_hidden() if multiprocessing.parent_process() else contextlib.nullcontext():
                self._chats = ChatTokenizer(job.chat_folder, job.chat_date)
        elif not job.fast:
            self._encoder = reference_encoder(job.recipe)
        else:
            try:
                self._encoder = GigatokenEncoder(job.recipe)
            except Exception as error:  # gigatoken refuses with several types, and any refusal means the same
                raise RefusedError(str(error)) from None
        cuts = self._encoder.cuts if self._encoder is not None else None
        source = self._encoder or self._chats
        assert source is not None
        self._dtype = token_dtype(source.vocab_size)
        self._reading = dataclasses.replace(job.reading, cuts=cuts)

    def run(self, shard: Shard, folder: Path) -> Path:
        """Write the part of one shard and return its temporary folder.

        Raises:
            UserError: a malformed document that stops the run, an unreadable input, or a full disk.
            StoppedError: the run was told to stop.
        """
        writer: PartWriter | None = None
        samples = Samples()
        try:
            writer = PartWriter(folder, self._dtype, self._chats is not None, self.job.end)
            for number, piece in enumerate(shard.ranges):
                piece.check_unchanged()
                self._tokenize(number, piece, writer, samples)
                piece.check_unchanged()
                if piece.begin == 0:
                    writer.add_input(piece)
            with self.left.get_lock():
                self.left.value -= 1
            samples.write(writer.folder)
            return writer.finish()
        except BaseException as error:
            if writer is not None:
                writer.discard()
            if isinstance(error, OSError):
                raise writing_error(error, folder.parent) from None
            raise

    def _tokenize(self, number: int, piece: FileRange, writer: PartWriter, samples: Samples) -> None:
        def complain(row: int, reason: str) -> None:
            if not self.job.skip:
                raise UserError(f"{place(piece, row)}: {reason}")
            writer.part.skipped.append((number, row, reason))

        def count(size: int) -> None:
            writer.part.bytes_in += size
            with self.counter.get_lock():
                self.counter.value += size

        batches = read_range(piece, self._reading, complain, count)
        for batch in ahead(batches) if self._cores() > 1 or urls.is_url(piece.path) else batches:
            if self.stop.is_set():
                raise StoppedError
            self.each_batch()
            if batch.abandoned:
                writer.abandon()
            elif batch.chats:
                self._render(batch, writer, complain)
            elif batch.texts:
                assert self._encoder is not None
                long = batch.ends is not None or max(map(len, batch.texts)) > 1 << 22
                threads = self._cores() if long or self.job.processes == 1 else 1
                ids, lengths = self._encoder.encode_batch(batch.texts, threads)
                if self.job.fast:
                    samples.add(self._encoder, batch.texts, (ids, lengths), (number, batch.numbers))
                writer.add(ids, lengths, batch.sources, batch.ends)

    def _cores(self) -> int:
        """Cores for each worker that still has a shard."""
        return self.job.workers // max(min(self.job.processes, self.left.value), 1)

    def _render(self, batch: DocumentBatch, writer: PartWriter, complain: Any) -> None:
        """Ids and masks of chats; what the template refuses is malformed."""
        assert self._chats is not None
        rendered, sources = [], []
        for chat, source, row in zip(batch.chats, batch.sources, batch.numbers, strict=True):
            try:
                samples = self._chats.samples(chat, self.job.mask)
            except MalformedError as error:
                complain(row, str(error))
                continue
            rendered += samples
            sources += [source] * len(samples)
            writer.part.split_chats += len(samples) > 1
            writer.part.split_samples += len(samples) if len(samples) > 1 else 0
        if rendered:
            ids, masks = (np.concatenate(column) for column in zip(*rendered, strict=True))
            lengths = np.array([len(ids) for ids, _ in rendered], dtype=np.int64)
            writer.add(ids, lengths, sources, mask=masks)


def place(piece: FileRange, row: int | None, numbers: LineNumbers | None = None) -> str:
    """Where a line of a piece is, "FILE, line N", counted from the file's beginning; the file if `row` is not known."""
    name = "standard input" if piece.path == STDIN else shown(piece.path)
    if piece.format == "text" or row is None:
        return name
    if piece.format == "parquet":
        from megatron_ultralong.data.tokenizing.parquet import rows_before

        return f"{name}, row {row + (rows_before(piece.path, piece.begin) if piece.begin else 0)}"
    if not piece.is_lines:
        return f"{name}, element {row}"
    before = (numbers or LineNumbers()).before(name, piece.begin) if piece.begin else 0
    return f"{name}, line {row + before}"


def writing_error(error: OSError, folder: Path) -> Exception:
    """The sentence for a disk that takes no more; any other error, such as an input's, as it is."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not full and error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
        return error
    mend = "free some space and run again, finished shards are kept" if full else "choose another folder"
    return disk_error(error, folder if full else Path(error.filename or folder), mend)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield from `items`, which a thread produces one item ahead: reading goes on while a batch is encoded."""
    channel: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=1)
    gone = threading.Event()

    def put(message: tuple[bool, Any]) -> None:
        while not gone.is_set():
            with contextlib.suppress(queue.Full):
                channel.put(message, timeout=0.2)
                return

    def produce() -> None:
        try:
            for item in items:
                put((True, item))
                del item
                if gone.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    threading.Thread(target=produce, daemon=True).start()
    try:
        while (message := channel.get())[0]:
            yield message[1]
            del message
        if message[1] is not None:
            raise message[1]
    finally:
        gone.set()


_state: dict[str, Any] = {}


def start(job: Job, counter: Any, left: Any, stop: Any) -> None:
    """What a worker process holds from its beginning on."""
    _state.update(job=job, counter=counter, left=left, stop=stop)


def run(shard: Shard, folder: Path) -> Path:
    """`Worker.run` in a worker process."""
    if "worker" not in _state:
        _state["worker"] = Worker(**_state)
    part: Path = _state["worker"].run(shard, folder)
    return part
