"""Reading documents from JSON Lines, one at a time, with file and line in every complaint.

A document is one JSON object a line: text in one field, or a chat in `messages`, and optionally its source. Blank
lines are skipped. Files named .gz are decompressed on the way. Memory: one line.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from megatron_ultralong.errors import UserError


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the fields of a document."""

    text: str = "text"
    """The text."""
    source: str = "source"
    """The source's name; may be missing, then it is the file's name without its endings."""
    messages: str = "messages"
    """The chat; a document that has it is a chat, whatever else it has."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One document and where it stood."""

    text: str
    """The text; empty for a chat."""
    messages: tuple[Mapping[str, str], ...] | None
    """The chat, or None for text."""
    source: str
    """Where it comes from."""
    place: str
    """"FILE, line N"."""

    @property
    def characters(self) -> int:
        """Characters of text or of the messages' contents."""
        return len(self.text) + sum(len(message["content"]) for message in self.messages or ())


def read_documents(path: Path, fields: Fields) -> Iterator[Document]:
    """Yield the documents of one file.

    Raises:
        UserError: the file is missing or cannot be decompressed; a line is not a JSON object or lacks a field.
    """
    source = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    for number, line in _lines(path):
        if not line.isspace():
            yield _parse(line, f"{path}, line {number}", fields, source)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise UserError(f"{path}: the input is missing; name a file of JSON Lines.")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
        stream = cast(BinaryIO, opened)
        try:
            yield from enumerate(stream, start=1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read ({error}); fetch or compress it again.") from None


def _parse(line: bytes, place: str, fields: Fields, default_source: str) -> Document:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: is not UTF-8 ({error.reason}); mend or remove the line.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: is not JSON ({error.msg}); mend or remove the line.") from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: holds {_json_type(value)}, not an object; mend or remove the line.")
    source = value.get(fields.source, default_source)
    if not isinstance(source, str):
        raise UserError(f"{place}: field '{fields.source}' holds {_json_type(source)}, not a string; mend it.")
    if b"\\ud" in line or b"\\uD" in line:
        _refuse_lone_surrogates(value, place)
    if fields.messages in value:
        return Document("", _messages(value[fields.messages], place, fields.messages), source, place)
    if fields.text not in value:
        present = ", ".join(value) or "none"
        raise UserError(
            f"{place}: the document has no field '{fields.text}' (its fields: {present}); "
            "name the right one with --json-key."
        )
    if not isinstance(value[fields.text], str):
        found = _json_type(value[fields.text])
        raise UserError(f"{place}: field '{fields.text}' holds {found}, not a string; mend it.")
    return Document(value[fields.text], None, source, place)


def _messages(value: Any, place: str, field: str) -> tuple[Mapping[str, str], ...]:
    if not isinstance(value, list):
        raise UserError(f"{place}: field '{field}' holds {_json_type(value)}, not a list of messages; mend it.")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(
                f"{place}: field '{field}' has a message without the strings 'role' and 'content'; mend it."
            )
    return tuple(value)


def _refuse_lone_surrogates(value: Any, place: str) -> None:
    """An escaped half of a UTF-16 pair is valid JSON but no text: no tokenizer can encode it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: has an escape of half a surrogate pair; mend or remove the line.") from None


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
