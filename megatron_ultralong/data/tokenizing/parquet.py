"""Documents from Parquet, row group by row group, of a URL by ranges; the only file that imports pyarrow.

Memory: the pages of one row group's columns, and rows of about 4 MB of text at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

from megatron_ultralong.data.tokenizing import remote, urls
from megatron_ultralong.data.tokenizing.chat_rows import BESIDE, chat_fields
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.streams import unreadable
from megatron_ultralong.errors import UserError, shown

_BATCH_BYTES = 1 << 22


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: needs pyarrow to be read; pip install pyarrow.") from None
    try:
        source = remote.opened(path, 0) if urls.is_url(path) else pyarrow.OSFile(os.fsencode(path))
        with source as bytes_, pyarrow.parquet.ParquetFile(bytes_, pre_buffer=False) as file:
            yield file
    except PermissionError:
        raise unreadable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES))) from None  # its own is longer
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{shown(path)}: cannot be read as Parquet ({reason}); write or fetch it again.") from None


def row_group_bytes(path: str) -> list[int]:
    """Bytes on disk of each row group.

    Raises:
        UserError: it is not Parquet.
    """
    with _opened(path) as file:
        metadata = file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return [sum(group.column(j).total_compressed_size for j in range(group.num_columns)) for group in groups]


def has_chats(path: str, fields: Fields) -> bool:
    """Whether its rows are chats."""
    with _opened(path) as file:
        return bool(chat_fields(file.schema_arrow.names, fields.messages, fields.text))


def read_rows(path: str, begin: int, end: int | None, fields: Fields) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of row groups [begin, end) in lists, with the fields that are asked for.

    Raises:
        UserError: it is not Parquet, or has neither a text nor a chat.
    """
    with _opened(path) as file:
        names = file.schema_arrow.names
        chat = chat_fields(names, fields.messages, fields.text)
        if not chat and fields.text not in names:
            raise UserError(
                f"{shown(path)}: has no column '{fields.text}' (its columns: {', '.join(names)}); "
                "name the right one with --json-keys."
            )
        columns = [*(chat or [fields.text]), *([fields.source] if fields.source in names else [])]
        columns += [name for name in BESIDE if chat and name in names]
        for group in range(begin, file.metadata.num_row_groups if end is None else end):
            about = file.metadata.row_group(group)
            rows = max(1, about.num_rows * _BATCH_BYTES // max(about.total_byte_size, 1))
            for batch in file.iter_batches(min(rows, 1 << 14), row_groups=[group], columns=columns, use_threads=False):
                rows_ = batch.to_pylist()
                yield [_without_nulls(row, top=True) for row in rows_] if chat else rows_


def every_row(path: str) -> Iterator[dict[str, Any]]:
    """Yield the rows with all their columns.

    Raises:
        UserError: it is not Parquet.
    """
    with _opened(path) as file:
        for batch in file.iter_batches(1 << 10, use_threads=False):
            yield from batch.to_pylist()


def _without_nulls(value: Any, top: bool = False) -> Any:
    """A value without the keys that are null, which Parquet gives every object whose column has them anywhere."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if top or each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def rows_before(path: str, group: int) -> int:
    """Rows in the row groups before this one."""
    with _opened(path) as file:
        return sum(file.metadata.row_group(i).num_rows for i in range(group))
