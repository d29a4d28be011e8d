"""Chats in which facts of a short text are recalled: what the quickstart trains on, in the wording of needles.

A text is filler lines with facts such as "The red key is 48213."
on lines of their own; questions follow, and the assistant answers with the fact's sentence. A rendered chat
never exceeds the length asked for: the pieces' tokens are summed to plan it (in byte-level BPE they add up, but for a
token where a line's last punctuation meets the blank line), the result is counted exactly, and where that leaves room
it is filled and counted again. About 1 ms a chat of 256 tokens.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer, Message
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.keys import DIGITS, NAMES, Fact, fact, question, random_facts

_SPARE = 16  # tokens that a chat may be too short by, before it is filled up
_FILLINGS = 8  # times at most


def answer(name: str, digits: str) -> str:
    """The assistant's answer: the fact's own sentence."""
    return fact(name, digits)


def count_tokens(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> int:
    """Tokens of the rendered chat."""
    return len(tokenizer.encode(tokenizer.render(messages)))


def recall_conversation(
    rng: random.Random,
    haystack: Haystack,
    tokenizer: ChatTokenizer,
    *,
    max_tokens: int,
    facts: int,
    filler_tokens: int,
    questions: int | None = None,
) -> list[Message]:
    """A chat about a short text that holds several facts.

    Args:
        rng: the only source of chance: the same state gives the same chat.
        haystack: where the filler lines come from.
        tokenizer: counts and renders.
        max_tokens: tokens that the rendered chat never exceeds.
        facts: facts in the text, at random depths.
        filler_tokens: tokens of filler asked for; less where it would not fit.
        questions: questions asked, drawn from the facts with repetition; None: as many as fit.

    Returns:
        User and assistant in turn; the first user message is the text, a blank line and the first question.

    Raises:
        UserError: the facts and one question (or the questions asked) pass max_tokens without any filler.
    """
    known = random_facts(rng, facts)
    depths = sorted(rng.random() for _ in known)
    asked = [rng.choice(known) for _ in range(questions or 1)]
    bare = count_tokens(tokenizer, _chat([], known, depths, asked))
    if bare > max_tokens:
        raise UserError(
            f"max_tokens = {max_tokens} is too short: {facts} facts and {len(asked)} questions take {bare} tokens; "
            "raise the length or ask for fewer."
        )
    lines = haystack.take(rng, min(filler_tokens, max_tokens - bare))
    if questions is None:
        room = max_tokens - bare - sum(map(haystack.count, lines))
        asked += _further_questions(rng, tokenizer, known, room)

    def ask_less() -> bool:
        return questions is None and len(asked) > 1 and bool(asked.pop())

    fillings = _FILLINGS if questions is not None and filler_tokens >= max_tokens - bare else 0
    write = functools.partial(_chat, known=known, depths=depths, asked=asked)
    return _fitted(rng, haystack, tokenizer, max_tokens, lines, write, fillings, ask_less)


def _fitted(
    rng: random.Random,
    haystack: Haystack,
    tokenizer: ChatTokenizer,
    limit: int,
    lines: list[str],
    write: Callable[[list[str]], list[Message]],
    fillings: int,
    ask_less: Callable[[], bool] = lambda: False,
) -> list[Message]:
    """The chat that `write` makes of the lines, filled up to near `limit` tokens and cut down to at most those."""
    while True:
        messages = write(lines)
        room = limit - count_tokens(tokenizer, messages)
        if fillings and room > _SPARE and (more := haystack.take(rng, room)):
            fillings -= 1
            lines += more
        elif room >= 0:
            return messages
        elif not ask_less():
            _drop(lines, haystack, -room)


def _further_questions(rng: random.Random, tokenizer: ChatTokenizer, known: Sequence[Fact], room: int) -> list[Fact]:
    """Draw facts to ask about until the next would take more than is left of `room` tokens."""
    asked: list[Fact] = []
    while True:
        further = rng.choice(known)
        room -= _exchange_tokens(tokenizer, further[0])
        if room < 0:
            return asked
        asked.append(further)


def _chat(lines: Sequence[str], known: Sequence[Fact], depths: Sequence[float], asked: Sequence[Fact]) -> list[Message]:
    """The text with each fact before the line at its depth (ascending shares of the lines), then the questions."""
    text: list[str] = []
    done = 0
    for (name, digits), depth in zip(known, depths, strict=True):
        cut = round(depth * len(lines))
        text += [*lines[done:cut], fact(name, digits)]
        done = cut
    text += lines[done:]
    messages: list[Message] = []
    for name, digits in asked:
        messages.append({"role": "user", "content": question(name)})
        messages.append({"role": "assistant", "content": answer(name, digits)})
    messages[0]["content"] = ("\n".join(text) + "\n\n" + messages[0]["content"]).lstrip()
    return messages


def _drop(lines: list[str], haystack: Haystack, excess: int) -> None:
    """Remove the shortest line that makes up for the excess, or the last ones where none does."""
    enough = [index for index, line in enumerate(lines) if haystack.count(line) >= excess]
    if enough:
        lines.pop(min(enough, key=lambda index: haystack.count(lines[index])))
        return
    while excess > 0 and lines:
        excess -= haystack.count(lines.pop())


@functools.lru_cache(maxsize=4 * len(NAMES))
def _exchange_tokens(tokenizer: ChatTokenizer, name: str) -> int:
    """Tokens that one more question about `name` and its answer add to a chat."""
    pair = (name, "0" * DIGITS)
    once, twice = (_chat([], [pair], [0.0], [pair] * times) for times in (1, 2))
    return count_tokens(tokenizer, twice) - count_tokens(tokenizer, once)
