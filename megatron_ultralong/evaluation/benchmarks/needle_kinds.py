"""What needles say and how they are asked for: keys of digits, sentences, several keys, keys among others like them.

The wording of keys is that of `keys`, which training's own needles and chats have too. A kind is pure: chance in,
lines and question out.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from megatron_ultralong.evaluation.benchmarks.keys import DIGITS, fact, lead_in, question, random_facts
from megatron_ultralong.evaluation.benchmarks.words import ADJECTIVES, NOUNS

SEVERAL = 4
"""Keys of the kind "several"."""
OTHERS = 8
"""Keys beside the one asked for of the kind "distractors"."""
_PEOPLE = "Ada Bela Carla Dorian Elif Farid Greta Hugo Ines Jonas Kira Leon Mira Nadia Oskar Paula Rafael Selma".split()
_TOWNS = "Bergen Cadiz Delft Evora Faro Ghent Havana Izmir Kyoto Lima Madras Nantes Oslo Porto Quito Riga Siena".split()


@dataclasses.dataclass(frozen=True)
class Hidden:
    """What one sample hides.

    Attributes:
        needles: lines, in the order of the text.
        depths: of each, 0 to 1, ascending.
        main: the one whose place and depth a report shows.
        question: asked behind the text.
        lead_in: what a right answer says before its reference.
        answers: references.
    """

    needles: tuple[str, ...]
    depths: tuple[float, ...]
    main: int
    question: str
    lead_in: str
    answers: tuple[str, ...]


Hide = Callable[[random.Random, float], Hidden]
"""Chance, and the depth of the cell, to what is hidden."""


def digits(rng: random.Random, depth: float) -> Hidden:
    """A key of five digits."""
    ((name, key),) = random_facts(rng, 1)
    return Hidden((fact(name, key),), (depth,), 0, question(name), lead_in(name), (key,))


def sentence(rng: random.Random, depth: float) -> Hidden:
    """A sentence in words: whose favourite place is where."""
    person, town = rng.choice(_PEOPLE), rng.choice(_TOWNS)
    place = f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} by the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    start = f"{person}'s favourite place in {town} is "
    return Hidden((f"{start}{place}.",), (depth,), 0, f"What is {person}'s favourite place in {town}?", start, (place,))


def several(rng: random.Random, depth: float) -> Hidden:
    """Four keys, the first at the depth, the others evenly from there to the end; all are asked for."""
    facts = random_facts(rng, SEVERAL)
    names = [name for name, _ in facts]
    asked = f"What are the {', '.join(names[:-1])} and {names[-1]} keys?"
    depths = tuple(depth + (1 - depth) * number / SEVERAL for number in range(SEVERAL))
    return Hidden(
        tuple(fact(*each) for each in facts), depths, 0, asked, lead_in(names[0]), tuple(key for _, key in facts)
    )


def distractors(rng: random.Random, depth: float) -> Hidden:
    """A key at the depth, and eight of other names anywhere."""
    return _among(rng, depth, OTHERS)


def recall_one(rng: random.Random, depth: float) -> Hidden:
    """A key anywhere."""
    return _among(rng, rng.random(), 0)


def recall_three(rng: random.Random, depth: float) -> Hidden:
    """Three keys anywhere, one of them asked for."""
    return _among(rng, rng.random(), 2)


def _among(rng: random.Random, depth: float, others: int) -> Hidden:
    (name, key), *rest = random_facts(rng, others + 1)
    placed = sorted([(depth, fact(name, key)), *((rng.random(), fact(*each)) for each in rest)])
    main = [line for _, line in placed].index(fact(name, key))
    lines, depths = tuple(line for _, line in placed), tuple(depth for depth, _ in placed)
    return Hidden(lines, depths, main, question(name), lead_in(name), (key,))


def chance_of(kind: Hide) -> float:
    """What a uniform guesser of the kind's answers scores, 0 to 1."""
    if kind is sentence:
        return float(len(ADJECTIVES) * len(NOUNS)) ** -2
    return 10.0**-DIGITS
