"""Keys of digits hidden in texts: their wording, which evaluation, validation and the quickstart's chats share."""

from __future__ import annotations

import random

from megatron_ultralong.errors import UserError

_NAMES = """
red blue green gold silver black white pink north south east west spring summer winter autumn
apple lemon cherry peach tiger horse eagle whale river stone cloud storm paper glass iron copper
"""
NAMES: tuple[str, ...] = tuple(_NAMES.split())
"""What a key may be called."""
DIGITS = 5
"""Digits of a key."""
BEFORE = "Something that will be asked for is hidden in the text below; keep it in mind.\n\n"
"""In base form, what stands before the text."""
QUESTION = "\n\nQuestion: {question}\n"
"""In base form, what stands behind it."""
PREFIX = "Answer:"
"""In base form, how the answer begins."""

Fact = tuple[str, str]
"""A name and its digits."""


def lead_in(name: str) -> str:
    """What stands before the digits in an answer."""
    return f"The {name} key is "


def fact(name: str, digits: str) -> str:
    """The fact's line in the text."""
    return f"{lead_in(name)}{digits}."


def question(name: str) -> str:
    """The user's question."""
    return f"What is the {name} key?"


def random_facts(rng: random.Random, count: int) -> list[Fact]:
    """`count` facts of different names with random digits.

    Raises:
        UserError: there are fewer names than facts.
    """
    if not 1 <= count <= len(NAMES):
        raise UserError(f"facts = {count} is out of range; ask for 1 to {len(NAMES)} facts, one a name.")
    return [(name, "".join(rng.choices("0123456789", k=DIGITS))) for name in rng.sample(NAMES, count)]


def depth_grid(count: int) -> list[float]:
    """`count` depths from 0 to 1, evenly spread: 10 is the paper's 0, 11, 22 ... 100 %; 1 is the middle."""
    return [round(index / (count - 1), 4) for index in range(count)] if count > 1 else [0.5]
