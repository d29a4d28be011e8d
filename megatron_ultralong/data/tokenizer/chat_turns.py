"""Where each response stands in a rendered chat: what a model generates after the prompt of that turn.

A response begins where its prompt ends: the messages before it, rendered with the generation prompt. It ends with its
end-of-turn token: the last added token of the chat that ends with this response, if nothing but white space follows;
without such a token, where that chat ends. What a template adds only to a chat that nobody goes on with (Phi-3's
end-of-text) is no part of it: that chat is also rendered with a generation prompt, and both agree only up to there.

Where every response stands in the whole chat as it did at its turn, the whole is one sample. Where a template renders
earlier turns otherwise later (Qwen 3 strips their thinking), each response is a sample of its own, rendered as it would
be served. Cost: two or three renderings a response; `chat_plans` needs one for a whole chat.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from megatron_ultralong.data.tokenizer.chat_template import ChatTemplate, Messages, Span, Tools
from megatron_ultralong.errors import MalformedError

Rendering = tuple[str, list[Span]]
"""A text to train on, and the characters of the responses in it."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """A chat that ends with a response, rendered."""

    text: str
    """The whole."""
    begin: int
    """Where the response begins."""
    end: int
    """Where it ends, its end-of-turn token included."""


class TurnFinder:
    """Finds responses by rendering the prompt of each.

    Args:
        template: renders.
        added_tokens: contents of the tokenizer's added tokens.
    """

    def __init__(self, template: ChatTemplate, added_tokens: Iterable[str]) -> None:
        self.template = template
        words = sorted((re.escape(word) for word in added_tokens if word.strip()), key=len, reverse=True)
        self._added = re.compile("|".join(words) or r"(?!)")

    def renderings(self, messages: Messages, tools: Tools, responses: Sequence[int]) -> list[Rendering]:
        """The chat with all its responses, or a chat for each where earlier turns change.

        Args:
            messages: the chat.
            tools: its tools.
            responses: indices of the responses to find, ascending; at least one.

        Raises:
            MalformedError: the template refuses the chat, or renders a response otherwise than after its prompt.
        """
        turns = [self.last_turn(messages[: i + 1], tools) for i in responses]
        ends_there = responses[-1] + 1 == len(messages)
        whole = turns[-1].text if ends_there else self.template.render(messages, tools)
        if all(whole.startswith(turn.text[: turn.end]) for turn in turns):
            return [(whole, [(turn.begin, turn.end) for turn in turns])]
        return [(turn.text, [(turn.begin, turn.end)]) for turn in turns]

    def last_turn(self, messages: Messages, tools: Tools) -> Turn:
        """The chat's last message, which is a response."""
        text = self.template.render(messages, tools)
        try:
            longer = self.template.render(messages, tools, prompt=True)
        except MalformedError:  # a template that puts no generation prompt after a response
            longer = text
        if len(messages) > 1:
            begin = len(self._prompt(messages, tools, text))
            settled = self._common(text, longer, begin)
        else:
            settled = self._common(text, longer, 0)
            begin = self._after_header(text, longer[settled:].lstrip())
        end = max(settled, begin)
        said = begin + len(text[begin:end].rstrip())
        closing = (found.end() for found in self._added.finditer(text, begin, end) if found.end() >= said)
        return Turn(text, begin, next(closing, end))

    def _prompt(self, messages: Messages, tools: Tools, text: str) -> str:
        prompt = self.template.render(messages[:-1], tools, prompt=True)
        if not text.startswith(prompt):
            raise MalformedError(
                f"{self.template.path}: its chat template renders message {len(messages)}, a response, otherwise than "
                f"after its prompt, which ends in {prompt[-40:]!r}; use a template whose prompts are the beginning of "
                "what they lead to, or mark responses with {% generation %}."
            )
        return prompt

    def _after_header(self, text: str, header: str) -> int:
        """Where the response begins that has nothing before it but what the template puts there."""
        place = text.find(header) if header else -1
        if place < 0:
            raise MalformedError(
                "messages: the first is the assistant's, and the chat template does not show where it begins; put a "
                "message of the user before it."
            )
        return place + len(header)

    def _common(self, text: str, longer: str, begin: int) -> int:
        """How far two renderings agree, in whole added tokens."""
        if longer.startswith(text) or not longer.startswith(text[:begin]):
            return len(text)
        pairs = enumerate(zip(text[begin:], longer[begin:], strict=False), start=begin)
        common = next((i for i, (one, other) in pairs if one != other), min(len(text), len(longer)))
        for one in (text, longer):
            for found in self._added.finditer(one, begin):
                if found.start() >= common:
                    break
                if found.end() > common:
                    common = found.start()
        return common
