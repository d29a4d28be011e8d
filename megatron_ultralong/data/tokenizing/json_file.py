"""A .json file: JSON Lines, or one value, an array of documents or one document over several lines.

Which of the two, its first line says: an array's begins with [, that of an object over several lines is { alone. One
value is parsed whole, so its size is bounded; memory is as for a line of JSON of that size.
"""

from __future__ import annotations

import codecs
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from megatron_ultralong.data.tokenizing.compression import StreamError
from megatron_ultralong.data.tokenizing.streams import LONGEST_LINE, byte_blocks, look_size

_BATCH_BYTES = 1 << 22


def begins_as_lines(path: str) -> bool:
    """Whether the beginning of a .json file is that of JSON Lines.

    Raises:
        UserError: it cannot be read.
    """
    with contextlib.suppress(StreamError):  # which is found again, and reported, when the file is read
        for block in byte_blocks(path, block=look_size(path)):
            head = block.removeprefix(codecs.BOM_UTF8).lstrip()
            if head:
                return not (head.startswith(b"[") or head.split(b"\n", 1)[0].rstrip() == b"{")
    return True


def read_value(path: str, count: Callable[[int], Any] | None = None) -> Iterator[list[Any]]:
    """Yield the elements of an array, or the one value of a file, in lists.

    What is no object, or what orjson does not read, comes as bytes of JSON.

    Raises:
        StreamError: it is damaged, is not JSON, or is too large.
        UserError: it cannot be read.
    """
    blocks, size = [], 0
    for block in byte_blocks(path, count=count):
        blocks.append(block)
        size += len(block)
        if size > LONGEST_LINE:
            raise StreamError(
                f"is one JSON value of more than {LONGEST_LINE >> 20} MiB; write one object a line (jq -c '.[]')."
            )
    content = b"".join(blocks)
    del blocks
    elements = _elements(content)
    del content
    some = max(1, len(elements) * _BATCH_BYTES // size)
    for begin in range(0, len(elements), some):
        yield elements[begin : begin + some]


def _elements(content: bytes) -> list[Any]:
    try:
        value = orjson.loads(content)
    except ValueError:
        try:
            value = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise StreamError(f"is no JSON ({error}); mend it, or write one object a line.") from None
        return [json.dumps(each).encode() for each in (value if type(value) is list else [value])]
    elements = value if type(value) is list else [value]
    return [each if type(each) is dict else orjson.dumps(each) for each in elements]
