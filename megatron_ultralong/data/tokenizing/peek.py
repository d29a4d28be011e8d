"""A look at the input before the work begins: whether it holds texts or chats, and texts to check tokenizers on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from megatron_ultralong.data.tokenizer.encoders import as_strings
from megatron_ultralong.data.tokenizing.compression import StreamError
from megatron_ultralong.data.tokenizing.documents import Fields, parse, take
from megatron_ultralong.data.tokenizing.json_file import read_value
from megatron_ultralong.data.tokenizing.readers import Reading, read_range
from megatron_ultralong.data.tokenizing.shards import FileRange, Shard
from megatron_ultralong.data.tokenizing.streams import byte_blocks, line_blocks, line_start
from megatron_ultralong.data.tokenizing.worker import place
from megatron_ultralong.errors import MalformedError, UserError, listing, shown

_SHARDS = 16
_CHARACTERS = 1 << 18
_DOCUMENT = 1 << 14
_RANGE = 1 << 20


def kind_of(files: Sequence[FileRange], fields: Fields, skip: bool) -> str:
    """What the first document is: "text" or "chat".

    Raises:
        UserError: there is no document, or unless `skip` the first is malformed.
    """
    for piece in files:
        if piece.format == "text":
            return "text"
        if piece.format == "parquet":
            from megatron_ultralong.data.tokenizing.parquet import has_chats

            return "chat" if has_chats(piece.path, fields) else "text"
        if kind := _kind_of_json(piece, fields, skip):
            return kind
    names = listing((shown(piece.path) for piece in files), most=3)
    raise UserError(f"--input ({names}): holds no document; name files with text or chats.")


def _kind_of_json(piece: FileRange, fields: Fields, skip: bool) -> str | None:
    """`kind_of` one file; None: there is no document in it."""
    number = 0
    try:
        lines = piece.is_lines
        for block in line_blocks(byte_blocks(piece.path, peek=True)) if lines else read_value(piece.path):
            for each in block:
                number += 1
                try:
                    if type(each) is dict:
                        return "text" if take(each, fields)[1] is None else "chat"
                    if each and not each.isspace():
                        return "text" if parse(each, fields)[1] is None else "chat"
                except MalformedError as error:
                    if not skip:
                        raise UserError(f"{place(piece, number)}: {error}") from None
    except StreamError as error:
        if not skip:
            raise UserError(f"{place(piece, number + 1)}: {error}") from None
    return None


def sample_texts(shards: Sequence[Shard], reading: Reading) -> list[str]:
    """Beginnings of the first documents of up to 16 shards spread over the input, 262,144 characters in all."""
    chosen = shards[:: -(-len(shards) // _SHARDS)]
    texts: list[str] = []
    for shard in chosen:
        left = _CHARACTERS // len(chosen)
        for text in _texts(shard, reading):
            texts.append(text[: min(left, _DOCUMENT)])
            left -= len(texts[-1])
            if left <= 0:
                break
    return texts


def _texts(shard: Shard, reading: Reading) -> Iterator[str]:
    for piece in shard.ranges:
        if piece.is_lines:
            begin = line_start(piece.path, piece.begin) if piece.begin else 0
            end = None if piece.end is None else min(begin + _RANGE, piece.stamp[0])  # a compressed file has no places
            block = next(byte_blocks(piece.path, begin, end, peek=True), b"")
            if b"\n" not in block:  # a long line, which is better not held here too: its escaped text will do
                yield block.decode(errors="ignore")
                continue
            if piece.end is not None:
                piece = dataclasses.replace(piece, begin=begin, end=begin + block.rindex(b"\n"))
        for batch in read_range(piece, reading, lambda row, reason: None, lambda size: None, peek=True):
            yield from as_strings(batch.texts)
