"""The texts that an input holds, one after the other, in any format that tokenizing reads: needles are hidden in them.

They come as they are read, so that who wants the first million tokens of a large corpus reads no more of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.data.tokenizer.encoders import as_strings
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.readers import Reading, read_range
from megatron_ultralong.data.tokenizing.shards import FileRange
from megatron_ultralong.data.tokenizing.streams import STDIN
from megatron_ultralong.data.tokenizing.walk import find_files
from megatron_ultralong.data.tokenizing.worker import place
from megatron_ultralong.errors import UserError, shown


def iterate_texts(path: Path | str) -> Iterator[str]:
    """Texts in order, blank ones left out.

    Args:
        path: a file, folder or glob, also by URL.

    Raises:
        UserError: the input is missing or holds no text, or a document cannot be read or is a chat.
    """
    reading, found = Reading(Fields(), "text"), False
    for piece in text_files(path):

        def complain(row: int, reason: str, piece: FileRange = piece) -> None:
            raise UserError(f"{place(piece, row)}: {reason}")

        for batch in read_range(piece, reading, complain, lambda size: None):
            for text in as_strings(batch.texts):
                if text.strip():
                    found = True
                    yield text
    if not found:
        raise UserError(f"{path}: there is no text in it; give documents with a 'text' field, or text files.")


def texts_fingerprint(path: Path | str) -> str:
    """SHA-256 (hex) of what an input holds: of each file its name and `FileRange.fingerprint`."""
    digest = hashlib.sha256()
    for piece in text_files(path):
        digest.update(f"{Path(piece.path).name} {piece.fingerprint()}\n".encode())
    return digest.hexdigest()


def text_files(path: Path | str) -> list[FileRange]:
    """Those that a path names.

    Raises:
        UserError: see `walk.find_files`; or it is standard input, which is read more than once here.
    """
    if str(path) == STDIN:
        raise UserError("-: texts are read more than once, and standard input cannot be; name a file.")
    return find_files([path], flag=shown(path))
