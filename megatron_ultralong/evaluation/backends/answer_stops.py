"""Where an answer ends: at an end token, at a stop text, or where the budget is spent; the same for every backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer

Decode = Callable[[Sequence[int]], str]
"""Ids -> text, without special tokens."""


def decoder(tokenizer: ChatTokenizer) -> Decode:
    """What turns answers into text."""
    return lambda ids: str(tokenizer.tokenizer.hf.decode(ids, skip_special_tokens=True))


class StopFinder:
    """Gathers the tokens of one answer.

    Args:
        decode: turns ids into text.
        ends: ids that end an answer.
        stop: texts that end it.
    """

    def __init__(self, decode: Decode, ends: Collection[int], stop: Sequence[str]) -> None:
        self._decode, self._ends, self._stop = decode, ends, tuple(stop)
        self._reach = max((len(text.encode()) for text in stop), default=0) + 8  # a token has a byte at least
        self.ids: list[int] = []
        """Generated so far, an end token included."""
        self.finished = False
        """The answer has ended by itself."""

    def add(self, token: int) -> bool:
        """Take the next token.

        Returns:
            Whether the answer ends with it.
        """
        self.ids.append(token)
        self.finished = token in self._ends
        if self._stop and not self.finished:
            tail = self._decode(self.ids[-self._reach :])
            self.finished = any(text in tail for text in self._stop)
        return self.finished

    def text(self) -> str:
        """The answer, without its end token and from a stop text on."""
        ids = self.ids[:-1] if self.ids and self.ids[-1] in self._ends else self.ids
        return cut_at(self._decode(ids), self._stop)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the stop texts."""
    return text[: min((place for each in stop if each and (place := text.find(each)) >= 0), default=len(text))]
