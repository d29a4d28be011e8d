"""Contexts made of lines: noise, and what is inserted between its lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_ultralong.evaluation.benchmarks.counting import Counter
from megatron_ultralong.evaluation.benchmarks.fitting import ListedPlan


def noise_plan(counter: Counter, noise: str, room: int) -> ListedPlan:
    """So many lines of noise as `room` tokens may hold, at the price that another one has."""
    each = int(counter.each([noise + "\n" + noise])[0] - counter.each([noise])[0])
    return ListedPlan(np.full(max(room, 0) // max(each - 1, 1) + 1, each))


def places_between(fractions: Sequence[float], count: int) -> list[int]:
    """Different places, each before one of `count` lines, from ascending chances of [0, 1)."""
    free = max(count - len(fractions) + 1, 1)
    return [min(int(fraction * free) + number, count) for number, fraction in enumerate(fractions)]


def insert_lines(lines: list[str], inserted: Sequence[str], at: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Join lines, each of `inserted` on one of its own before line `at`, ascending.

    Returns:
        The text, and where each of `inserted` stands in it.
    """
    parts, places, size, done = list[str](), list[tuple[int, int]](), 0, 0
    for line, place in zip(inserted, at, strict=True):
        parts += lines[done:place]
        size += sum(map(len, lines[done:place])) + place - done
        places.append((size, size + len(line)))
        parts.append(line)
        size += len(line) + 1
        done = place
    return "\n".join([*parts, *lines[done:]]), places
