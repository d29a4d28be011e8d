"""A row of a data set to a chat, in any of the usual layouts; what a layout says and we cannot follow is refused.

| layout | fields |
|---|---|
| OpenAI, Hugging Face | `messages`: `role`, `content`, `tool_calls`, `reasoning_content`, ...; beside it `tools` |
| ShareGPT | `conversations` (or `messages`): `from` and `value`; beside it `system`, `tools` |
| TRL | `prompt` and `completion`, lists of messages; only the completion is learnt |

`weight` (0 or 1) or `train` of a response says whether it is learnt. A key that is null is as one that is missing, as
in transformers and as Parquet cannot tell; text parts of a content are joined; a tool call's arguments in a string are
read, as servers read them before they render.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import orjson

from megatron_ultralong.data.tokenizer.chat import Chat, Message
from megatron_ultralong.errors import MalformedError

BESIDE = ("tools", "system", "functions")
"""Fields of a row that belong to its chat."""

_SHAREGPT = "conversations"
_PAIR = ("prompt", "completion")
_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
_REASONING = ("reasoning_content", "thinking", "reasoning")


def chat_fields(names: Container[str], messages: str, text: str) -> tuple[str, ...]:
    """The fields that hold the chat of a row with these fields; () if it is a text.

    Args:
        names: the row's fields.
        messages: name of the field for chats; a row that has it is a chat, whatever else it has.
        text: name of the field for texts.
    """
    if messages in names:
        return (messages,)
    if messages != "messages" or text in names:
        return ()
    if _SHAREGPT in names:
        return (_SHAREGPT,)
    return _PAIR if all(name in names for name in _PAIR) else ()


def read_chat(row: Mapping[str, Any], fields: tuple[str, ...]) -> Chat:
    """The chat in these fields of a row.

    Raises:
        MalformedError: it has none, or one that cannot be followed.
    """
    if fields == _PAIR and any(isinstance(row[name], str) for name in _PAIR):
        raise MalformedError(
            "fields 'prompt' and 'completion' hold text, which belongs to no turn of a chat; write them as messages, "
            "or as text with --json-keys."
        )
    parts = [_messages(row[name], name) for name in fields]
    messages = [message for part in parts for message in part]
    unlearnt = len(parts[0]) if fields == _PAIR else 0
    system = row.get("system")
    if system:
        if not isinstance(system, str):
            raise MalformedError(f"field 'system' holds {json_type(system)}, not a string; mend it.")
        if messages and messages[0]["role"] == "system":
            raise MalformedError("field 'system' and the first message both are the system's; keep one.")
        messages.insert(0, {"role": "system", "content": system})
        unlearnt += 1 if unlearnt else 0
    if row.get("functions"):
        raise MalformedError("field 'functions' is OpenAI's older form of tools; write it as 'tools'.")
    learnt = [_is_learnt(message) for message in messages]  # removes the keys that say so
    responses = tuple(i for i, message in enumerate(messages) if message["role"] == "assistant")
    if not responses:
        roles = ", ".join(sorted({message["role"] for message in messages})) or "none"
        raise MalformedError(f"messages: no message has the role 'assistant' (roles: {roles}); add a response.")
    wanted = tuple(i for i in responses if i >= unlearnt and learnt[i])
    if not wanted:
        raise MalformedError("messages: every response has the weight 0, so that there is nothing to learn; remove it.")
    return Chat(tuple(messages), wanted, _tools(row.get("tools")))


def _messages(value: Any, field: str) -> list[Message]:
    if not isinstance(value, list):
        raise MalformedError(f"field '{field}' holds {json_type(value)}, not a list of messages; mend it.")
    return [_message(each, field) for each in value]


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, dict):
        raise MalformedError(f"field '{field}' has {json_type(value)} among its messages, not an object; mend it.")
    message = {key: each for key, each in value.items() if each is not None}
    if "from" in message and "role" not in message:
        speaker = message.pop("from")
        if speaker not in _SPEAKERS:
            known = ", ".join(_SPEAKERS)
            raise MalformedError(f"field '{field}' has a message from {speaker!r}, not one of {known}; mend it.")
        message = {"role": _SPEAKERS[speaker], "content": message.pop("value", None), **message}
        message = {key: each for key, each in message.items() if each is not None}
    if isinstance(message.get("content"), list):
        message["content"] = _joined(message["content"], field)
    calls = _calls(message.get("tool_calls"), field)
    if calls:
        message["tool_calls"] = calls
    else:
        message.pop("tool_calls", None)
    silent = "content" not in message and (calls or "function_call" in message)
    if not isinstance(message.get("role"), str) or not (silent or isinstance(message.get("content"), str)):
        raise MalformedError(f"field '{field}' has a message without the strings 'role' and 'content'; mend it.")
    reasoning = next((message.pop(key) for key in _REASONING if key in message), None)
    if reasoning is not None:
        message |= {"reasoning_content": reasoning, "thinking": reasoning}
    return message


def _joined(parts: list[Any], field: str) -> str:
    """Text parts one after the other, as templates that take parts print them."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else json_type(part)
            raise MalformedError(f"field '{field}' has a content with a part that is no text ({kind}); remove it.")
    return "".join(part["text"] for part in parts)


def _calls(value: Any, field: str) -> list[Any] | None:
    if not value:
        return None
    calls = []
    for call in value if isinstance(value, list) else [None]:
        inner: Any = call.get("function", call) if isinstance(call, dict) else None
        arguments = inner.get("arguments", {}) if isinstance(inner, dict) else None
        if isinstance(arguments, str):
            try:
                arguments = orjson.loads(arguments or "{}")
            except ValueError:
                arguments = None
        if not isinstance(arguments, dict) or not isinstance(call, dict):
            raise MalformedError(
                f"field '{field}' has a tool call that is no object with a 'function' and its 'arguments'; mend it."
            )
        if "arguments" in inner:
            inner = {**inner, "arguments": arguments}
        calls.append({**call, "function": inner} if "function" in call else inner)
    return calls


def _tools(value: Any) -> tuple[Message, ...] | None:
    if isinstance(value, str):
        try:
            value = orjson.loads(value or "[]")
        except ValueError:
            value = None
        value = "" if value is None else value
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise MalformedError("field 'tools' is no list of objects, nor JSON of one; mend it.")
    return tuple(value)


def _is_learnt(message: Message) -> bool:
    """What `weight` or `train` says of a message, from which they are removed."""
    said = {key: message.pop(key) for key in ("weight", "train") if key in message}
    for key, value in said.items():
        if value not in (0, 1):
            raise MalformedError(f"messages: a message has the {key} {value!r}, which is neither 0 nor 1; mend it.")
        if value and message["role"] != "assistant":
            raise MalformedError(
                f"messages: a message of the {message['role']} has the {key} {value!r}, and only responses are learnt; "
                "remove it."
            )
    return all(said.values())


def json_type(value: Any) -> str:
    """What a value is called in JSON."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
