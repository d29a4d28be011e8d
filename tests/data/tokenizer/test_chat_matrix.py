"""Every chat template on every shape of tokenizer, chat by chat, against transformers and the slow definition.

Ids are those of AutoTokenizer.apply_chat_template(tokenize=True). What is learnt of a turn is found with ids alone: the
chat before it with a generation prompt, and the chat up to it without, each rendered and encoded by transformers. The
response is what the second has more than the first, up to its last end-of-turn token.
"""

from __future__ import annotations

import datetime

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from megatron_ultralong.data.tokenizer.chat import Chat, ChatTokenizer
from megatron_ultralong.data.tokenizer.chat_template import CHAT_DATE
from tests.data.tokenizer.scripts import SCRIPTS
from tests.data.tokenizer.shapes import build
from tests.data.tokenizer.templates import TEMPLATES, with_template

SHAPES = [
    *(
        "llama3",
        "gpt2",
        "gpt2-prefix",
        "qwen2",
        "qwen2-nfc-by-class",
        "llama2",
        "llama2-prepend",
        "llama2-model",
        "mistral-first",
    ),
    *("mistral-always", "mistral-never", "gemma", "unigram", "added-nfc", "added-always", "split-special"),
]
TOOLS = ({"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},)
WORDS = [text[:40].strip() for text in SCRIPTS.values()]


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def tool(content):
    return {"role": "tool", "content": content}


CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "\u00e9"}}}]


def chats(name):
    """Chats that a template takes."""
    template = TEMPLATES[name]
    quoted = f"say {template.end} and {template.specials.split()[0]}!"
    yield [user("a?"), assistant("b!")], None
    yield [user("a"), assistant("b"), user("c"), assistant("d e f"), user("g"), assistant("h")], None
    yield [user("a"), assistant("b"), user("c")], None
    yield (
        [system("Be brief."), user("hi\nthere"), assistant("  hello\n\nyou \n"), user("\tmore"), assistant("1 2")],
        None,
    )
    yield [user(quoted), assistant(quoted), user(quoted), assistant(f"{template.end}x {template.end}")], None
    yield [message for word in WORDS for message in (user(word), assistant(f"{word} {word}"))], None
    yield [user("q"), assistant("<think>\nhm, a\n</think>\n\nx"), user("r"), assistant("y")], None
    if template.steady and not template.alternates:
        yield [user("a"), assistant("b"), assistant("c"), user("d"), user("e"), assistant("f")], None
    if template.tools:
        turns = [user("sum?"), assistant(None, tool_calls=CALL), tool("3"), assistant("It is 3."), user("sure?")]
        yield [*turns, assistant("Yes.", tool_calls=CALL), tool("4"), tool("5"), assistant("4.")], TOOLS
        yield [system("s"), *turns[:4]], TOOLS


def expected(hf, name, messages, tools):
    """[(ids, mask)] by the slow definition."""

    def ids(messages, prompt=False):
        return hf.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, return_dict=False)

    whole = ids(messages)
    if name == "marked":
        marked = hf.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        return [(whole, marked["assistant_masks"])]
    turns = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = ids(messages[:i], prompt=True), ids(messages[: i + 1])
            begin = _border(hf, before, after)
            ends = [j for j, each in enumerate(after) if each == hf.convert_tokens_to_ids(TEMPLATES[name].end)]
            turns.append((after, begin, max(ends, default=len(after) - 1) + 1))
    if all(after[:end] == whole[:end] for after, _, end in turns):
        return [(whole, [int(any(begin <= j < end for _, begin, end in turns)) for j in range(len(whole))])]
    return [(after, [int(begin <= j < end) for j in range(len(after))]) for after, begin, end in turns]


def _border(hf, before, after):
    """The first token of `after` that holds nothing of `before`, which may be encoded otherwise at its end."""
    same = next((j for j, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before))
    left, j = len("".join(hf.convert_ids_to_tokens(before[same:]))), same
    while left > 0:
        left -= len(hf.convert_ids_to_tokens(after[j]))
        j += 1
    return j


@pytest.fixture
def clock(monkeypatch):
    """Transformers' clock, stopped at the date that templates are given."""

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(CHAT_DATE)

    monkeypatch.setattr(chat_template_utils, "datetime", Stopped)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ids_are_transformers_and_masks_are_what_each_turn_generates(shape, name, tmp_path, clock):
    folder = with_template(build(shape, tmp_path / "shape"), name)
    ours, hf = (
        ChatTokenizer(folder),
        AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False),
    )
    for messages, tools in chats(name):
        messages = [{key: each for key, each in message.items() if each is not None} for message in messages]
        responses = tuple(i for i, message in enumerate(messages) if message["role"] == "assistant")
        got = ours.samples(Chat(tuple(messages), responses, tools))
        if shape == "split-special":  # the end of a turn is several tokens
            whole = hf.apply_chat_template(messages, tools=tools, return_dict=False)
            assert not TEMPLATES[name].steady or got[0][0].tolist() == whole
            assert all(TEMPLATES[name].end in hf.decode(ids[mask == 1]).replace(" ", "") for ids, mask in got)
            continue
        wanted = expected(hf, name, messages, tools)
        assert [(ids.tolist(), mask.tolist()) for ids, mask in got] == wanted, messages
        assert (len(got) == 1) or not TEMPLATES[name].steady
        assert all(mask.any() for _, mask in got)
