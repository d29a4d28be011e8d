"""Documents of one piece of input in batches for the tokenizer, whatever the format, in bounded memory.

A batch is the documents of one block of 4 MB. A longer text comes in pieces where its tokenizer allows that
(`cutting.Cuts`): of a text file no more is then held than a batch, or what lies between two exact places; a line of
JSON is held whole once, as bytes and as a string. Text files stay UTF-8, which is checked; Python's strings take up to
four times as much.
"""

from __future__ import annotations

import codecs
import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from megatron_ultralong.data.tokenizer.chat import Chat
from megatron_ultralong.data.tokenizer.cutting import PIECE, Cuts
from megatron_ultralong.data.tokenizing.compression import StreamError
from megatron_ultralong.data.tokenizing.documents import Fields, parse, take
from megatron_ultralong.data.tokenizing.json_file import read_value
from megatron_ultralong.data.tokenizing.shards import FileRange
from megatron_ultralong.data.tokenizing.streams import byte_blocks, line_blocks, range_lines
from megatron_ultralong.errors import MalformedError

Complain = Callable[[int, str], None]
"""Called with the number of a line or row within the piece, from 1, and what is wrong with it; may raise."""

_LONG = 4 * PIECE
"""Characters from which a text is cut, and of a batch of its pieces twice that."""


@dataclasses.dataclass
class DocumentBatch:
    """Texts or chats, and what belongs to them."""

    texts: list[str | bytes]
    """Texts, or pieces of them; none for chats."""
    sources: list[str]
    """One for each document that ends in this batch."""
    chats: list[Chat] = dataclasses.field(default_factory=list)
    """Chats, each whole."""
    numbers: list[int] = dataclasses.field(default_factory=list)
    """Line or row of each text or chat; none for text files and for the pieces of a long text."""
    ends: list[bool] | None = None
    """Whether each text ends its document; None: all do."""
    abandoned: bool = False
    """The document that the last batch left open turned out to be malformed."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How documents are read."""

    fields: Fields
    """Names of the fields."""
    kind: str
    """"text" or "chat"; documents of the other kind are malformed."""
    source: str = ""
    """The source of every document, whatever its fields say; "": by field, or by file."""
    cuts: Cuts | None = None
    """Where long texts are cut; None: nowhere."""


def read_range(
    piece: FileRange, reading: Reading, complain: Complain, count: Callable[[int], Any], *, peek: bool = False
) -> Iterator[DocumentBatch]:
    """Yield the documents of a piece.

    Args:
        piece: what to read.
        reading: how.
        complain: takes what is malformed; where it returns, that document is left out.
        count: called with the bytes that were read from disk.
        peek: look at the beginning of standard input or of a text file only.
    """
    rows = 0
    try:
        if piece.format == "text":
            yield from _texts(piece, reading, complain, count, peek)
            return
        for block in _blocks(piece, reading.fields, count, peek):
            batch = _batch(block, rows, piece, reading, complain)
            rows += len(block)
            block.clear()  # a long line is not kept beside its text
            yield from _bounded(batch, reading.cuts)
    except StreamError as error:
        complain(rows + 1, str(error))


def _blocks(
    piece: FileRange, fields: Fields, count: Callable[[int], Any], peek: bool
) -> Iterator[list[bytes]] | Iterator[list[dict[str, Any]]]:
    if piece.format == "parquet":
        from megatron_ultralong.data.tokenizing.parquet import read_rows

        return _counted_rows(read_rows(piece.path, piece.begin, piece.end, fields), piece, count)
    if not piece.is_lines:
        return read_value(piece.path, count)
    if piece.end is not None:
        return range_lines(piece.path, piece.begin, piece.end, count)
    return line_blocks(byte_blocks(piece.path, peek=peek, count=count))


def _counted_rows(
    blocks: Iterator[list[dict[str, Any]]], piece: FileRange, count: Callable[[int], Any]
) -> Iterator[list[dict[str, Any]]]:
    yield from blocks
    count(piece.bytes)


def _batch(block: Sequence[Any], before: int, piece: FileRange, reading: Reading, complain: Complain) -> DocumentBatch:
    """The documents of some lines or rows, the first of which has the number `before` + 1."""
    batch = DocumentBatch([], [])
    fields, is_chat, fixed, default = reading.fields, reading.kind == "chat", reading.source, piece.source
    for i, each in enumerate(block):
        try:
            if type(each) is dict:
                text, chat, source = take(each, fields)
            elif not each or each.isspace():
                continue
            else:
                text, chat, source = parse(each, fields)
            if (chat is not None) != is_chat:
                raise MalformedError(
                    f"is {'no chat' if is_chat else 'a chat'}, unlike the documents before it; "
                    "preprocess texts and chats apart."
                )
        except MalformedError as error:
            complain(before + i + 1, str(error))
            continue
        if chat is None:
            batch.texts.append(text)
        else:
            batch.chats.append(chat)
        batch.numbers.append(before + i + 1)
        batch.sources.append(fixed or source or default)
    return batch


def _bounded(batch: DocumentBatch, cuts: Cuts | None) -> Iterator[DocumentBatch]:
    """The batch, its long texts in pieces in batches of their own."""
    if cuts is None or all(len(text) <= _LONG for text in batch.texts):
        yield batch
        return
    start = 0
    texts, sources, numbers, batch.texts, batch.sources = batch.texts, batch.sources, batch.numbers, [], []
    for i in range(len(texts)):
        if len(texts[i]) > _LONG:
            if i > start:
                yield DocumentBatch(texts[start:i], sources[start:i], numbers=numbers[start:i])
            text, texts[i] = texts[i], ""
            yield from _batches(cuts.pieces(str(text)), sources[i])
            del text
            start = i + 1
    if start < len(texts):
        yield DocumentBatch(texts[start:], sources[start:], numbers=numbers[start:])


def _batches(pieces: Iterable[str | bytes], source: str) -> Iterator[DocumentBatch]:
    """A document's pieces in batches."""
    some: list[str | bytes] = []
    size = 0
    for piece in pieces:
        if size >= 2 * _LONG:
            yield DocumentBatch(some, [], ends=[False] * len(some))
            some, size = [], 0
        some.append(piece)
        size += len(piece)
        del piece
    yield DocumentBatch(some, [source], ends=[False] * (len(some) - 1) + [True])


def _texts(
    piece: FileRange, reading: Reading, complain: Complain, count: Callable[[int], Any], peek: bool
) -> Iterator[DocumentBatch]:
    """A text file is one document."""
    if reading.kind == "chat":
        complain(1, "is no chat, unlike the documents before it; preprocess texts and chats apart.")
        return
    source = reading.source or piece.source
    blocks = _utf8(byte_blocks(piece.path, peek=peek, count=count))
    opened = False
    try:
        if peek:
            yield DocumentBatch([next(blocks, b"").decode(errors="ignore")], [source])
            return
        pieces = reading.cuts.stream(blocks) if reading.cuts else _whole(blocks)
        for batch in _batches(pieces, source):
            yield batch
            opened = True
            del batch
    except (_NotUtf8Error, StreamError) as error:
        if opened:
            yield DocumentBatch([], [], abandoned=True)
        if isinstance(error, StreamError):
            raise
        complain(1, str(error))


class _NotUtf8Error(Exception):
    """A text file holds something else; the message says where, and the mend."""


def _utf8(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks of one text, once they are known to be UTF-8, without its byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    head: bytes | None = b""
    done = 0
    try:
        for block in blocks:
            decoder.decode(block)
            done += len(block)
            if head is not None:
                head += block
                if len(head) < len(codecs.BOM_UTF8):
                    continue
                block, head = head.removeprefix(codecs.BOM_UTF8), None
            yield block
            del block
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        near = done + error.start
        raise _NotUtf8Error(f"is not UTF-8 ({error.reason}, near byte {near}); mend or remove the file.") from None
    if head:
        yield head


def _whole(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """All blocks as one, which is held once while it comes together."""
    held = io.BytesIO()
    for block in blocks:
        held.write(block)
    yield held.getvalue()
