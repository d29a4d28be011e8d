"""Predictions at random: pieces of references among phrases, punctuation, numbers and Chinese, whole or torn."""

from __future__ import annotations

import random
from collections.abc import Sequence

_ENGLISH = """
answer is:|The answer is|answer:|option is|correct option is:|is:|Option|option|A|B.|C:|D|AB|the|a|An|and|of|Final|12|-7
3.5|007|1_000|0|Question|<context>|<example>|none|yes|no|maybe|kitchen|garden|apple|milk|apple,milk|nothing|e,s|n,w|café
The correct answer is (|The correct answer is |**|(A)|(B|D)|.|,|:|'|"|`|*|-|{|}|(|)|?|!
"""
_CHINESE = "你好 是 的 一定 。 ， 《 》 ． 北京大学 二十 年 Ａ ß İ ٣ ８８"
_BLANKS = ["\n", "\n\n", "  ", "\t", "\r", "\x00", "\x1f", "\u2028", "\u3000"]
PIECES = [*_ENGLISH.strip().replace("\n", "|").split("|"), *_CHINESE.split(" "), *_BLANKS]


def prediction(rng: random.Random, references: Sequence[str]) -> str:
    """One prediction, sometimes empty, sometimes a reference itself."""
    kind = rng.random()
    if kind < 0.02:
        return rng.choice(["", " ", "\n", ".", "，"])
    if kind < 0.1:
        return rng.choice(references)
    parts = []
    for _ in range(rng.randint(1, 12)):
        if rng.random() < 0.4:
            reference = rng.choice(references)
            first = rng.randint(0, max(len(reference) - 1, 0)) if rng.random() < 0.5 else 0
            last = rng.randint(first, len(reference)) if rng.random() < 0.5 else len(reference)
            parts.append(reference[first:last])
        else:
            parts.append(rng.choice(PIECES))
    text = rng.choice(["", " ", " "]).join(parts)
    return rng.choice([text, text, text, text.upper(), text.lower(), text.strip()])


def sentence(rng: random.Random, words: Sequence[str], most: int) -> str:
    """Some words."""
    return rng.choice([" ", " ", ""]).join(rng.choice(words) for _ in range(rng.randint(1, most)))
