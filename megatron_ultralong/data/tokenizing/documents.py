"""What a document is: one JSON object with a text or a chat, and the complaint where it is not.

A document is one JSON object a line: text in one field, or a chat in `messages`, and optionally its source. Parsing is
orjson's (about 1 GB/s, three times the standard library's); a line that it refuses goes to the standard library, whose
complaint says what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import orjson

from megatron_ultralong.data.tokenizer.chat import Chat
from megatron_ultralong.data.tokenizing.chat_rows import chat_fields, json_type, read_chat
from megatron_ultralong.data.tokenizing.streams import LONGEST_LINE
from megatron_ultralong.errors import MalformedError


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the fields of a document."""

    text: str = "text"
    """The text."""
    source: str = "source"
    """The source's name; may be missing, then it follows from the file."""
    messages: str = "messages"
    """The chat; a document that has it is a chat, whatever else it has (see `chat_rows` for other layouts)."""


def parse(line: bytes, fields: Fields) -> tuple[str, Chat | None, str]:
    """Text, chat (None for text) and source ("" if it has none) of one JSON object.

    Raises:
        MalformedError: it is none or too long, lacks the field, or a field has another type.
    """
    if len(line) > LONGEST_LINE:
        raise MalformedError(f"is longer than {LONGEST_LINE >> 20} MiB; put its text into a file of its own.")
    try:
        value = orjson.loads(line)
    except ValueError:
        value = _parse_strictly(line)
    if type(value) is not dict:
        raise MalformedError(f"holds {json_type(value)}, not an object; mend or remove the line.")
    return take(value, fields)


def take(value: dict[str, Any], fields: Fields) -> tuple[str, Chat | None, str]:
    """`parse` for an object that is already read."""
    source = value.get(fields.source)
    if source is None:
        source = ""
    elif type(source) is not str:
        raise MalformedError(f"field '{fields.source}' holds {json_type(source)}, not a string; mend it.")
    chat = chat_fields(value, fields.messages, fields.text)
    if chat:
        return "", read_chat(value, chat), source
    text = value.get(fields.text)
    if type(text) is not str:
        if fields.text in value:
            raise MalformedError(f"field '{fields.text}' holds {json_type(text)}, not a string; mend it.")
        present = ", ".join(value) or "none"
        raise MalformedError(
            f"the document has no field '{fields.text}' (its fields: {present}); name the right one with --json-keys."
        )
    return text, None, source


def _parse_strictly(line: bytes) -> Any:
    """The standard library's reading of a line that orjson refused, or its complaint."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"is not UTF-8 ({error.reason}); mend or remove the line.") from None
    except json.JSONDecodeError as error:
        raise MalformedError(f"is not JSON ({error.msg}); mend or remove the line.") from None
    except UnicodeEncodeError:  # an escaped half of a UTF-16 pair is valid JSON, but no tokenizer can encode it
        raise MalformedError("has an escape of half a surrogate pair; mend or remove the line.") from None
    except RecursionError:
        raise MalformedError("is not JSON (nested too deeply); mend or remove the line.") from None
    except ValueError:  # Python's limit on the digits of an integer
        raise MalformedError("holds a number of too many digits; mend or remove the line.") from None
    return value
