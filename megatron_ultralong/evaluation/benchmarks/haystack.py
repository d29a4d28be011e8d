"""Real text to hide a needle in, cut into lines whose token counts add up.

A line is counted after another one, as it stands in a text: sentencepiece puts a "▁" before what stands alone.
Blank lines are left out: a byte-level BPE's split merges a run of newlines into one piece, so only lines that end in
something visible have counts that add up when they are joined again. Lines above 64 tokens are left out too, so that a
sum can come near any length. Each line is tokenized once, when it is first taken. The sum is a plan: `retrieval` counts
the whole.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError

LONGEST_LINE = 64
"""Tokens above which a line is left out."""

_LOOK_AHEAD = 256
_BEFORE = "x\n"


class Haystack:
    """Lines of real text.

    Args:
        texts: documents; their order is kept.
        tokenizer: counts the tokens of a line with its newline.

    Raises:
        UserError: no text has a line that can be used.
    """

    def __init__(self, texts: Sequence[str], tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._lines = [line.rstrip() for text in texts for line in text.splitlines() if line.strip()]
        self._counts: dict[str, int] = {}
        self._before = len(tokenizer.encode(_BEFORE))
        if not any(self.count(line) <= LONGEST_LINE for line in self._lines):
            raise UserError(
                f"the haystack's {len(texts)} texts hold no line of at most {LONGEST_LINE} tokens; "
                "give it prose or code with line breaks."
            )

    def __len__(self) -> int:
        """Lines in all."""
        return len(self._lines)

    def count(self, line: str) -> int:
        """Tokens of `line` and its newline."""
        count = self._counts.get(line)
        if count is None:
            count = self._counts[line] = len(self._tokenizer.encode(f"{_BEFORE}{line}\n")) - self._before
        return count

    def take(self, rng: random.Random, tokens: int) -> list[str]:
        """Consecutive lines from a random place whose counts sum to at most `tokens`.

        Lines that are too long, or that no longer fit near the end, are passed over; the text starts again
        from its beginning when it ends.

        Returns:
            The lines, without their newlines.
        """
        lines: list[str] = []
        start, missed, step = rng.randrange(len(self._lines)), 0, 0
        while tokens > 0 and missed < _LOOK_AHEAD:
            line = self._lines[(start + step) % len(self._lines)]
            step += 1
            count = self.count(line)
            if count > LONGEST_LINE and step < len(self._lines):
                continue
            if count > min(tokens, LONGEST_LINE):
                missed += 1
                continue
            lines.append(line)
            tokens -= count
        return lines
