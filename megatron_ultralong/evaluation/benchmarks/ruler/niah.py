"""RULER's needles in a haystack: keys and values hidden in noise, in essays, or among needles like them.

One unit of the haystack is a line of noise, a word of the essays or one needle. Essays are taken from the corpus'
beginning, cut at a word, and repeated when they are too short; needles go between sentences, at 40 rounded even
percentages drawn without replacement. A value asked for belongs to one key alone: no other needle has that key.
"""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.filler import filler_of
from megatron_ultralong.evaluation.benchmarks.fitting import SLACK, ListedPlan
from megatron_ultralong.evaluation.benchmarks.prompt_templates import fill
from megatron_ultralong.evaluation.benchmarks.ruler.asking import Asking
from megatron_ultralong.evaluation.benchmarks.ruler.lines import insert_lines, noise_plan, places_between
from megatron_ultralong.evaluation.benchmarks.ruler.wording import Wording
from megatron_ultralong.evaluation.samples import Sample

Kind = Literal["numbers", "words", "uuids"]
_DEPTHS = tuple(round(100 * number / 39) / 100 for number in range(40))
_BLOCK = 512
_DIGITS = 7


@dataclasses.dataclass(frozen=True)
class Needles:
    """What is hidden where.

    Attributes:
        haystack: what around it.
        keys: how many keys have needles.
        values: how many values each key has.
        queries: how many keys are asked for.
        key: what keys are.
        value: what values are.
    """

    haystack: Literal["noise", "essay", "needle"]
    keys: int = 1
    values: int = 1
    queries: int = 1
    key: Kind = "words"
    value: Kind = "numbers"


@dataclasses.dataclass(frozen=True)
class _Hidden:
    """What one sample hides: needles in the order of the text, each with whether it is asked for."""

    needles: tuple[tuple[str, bool], ...]
    queries: tuple[str, ...]
    answers: tuple[str, ...]
    kind: Kind

    @property
    def fields(self) -> dict[str, str]:
        """Of the templates; with one value the kind is singular."""
        several = ", ".join(self.queries[:-1]) + ", and " + self.queries[-1]
        return {
            "type_needle_v": self.kind if len(self.answers) > 1 else self.kind[:-1],
            "query": several if len(self.queries) > 1 else self.queries[0],
        }


def draw_needles(asking: Asking, needles: Needles) -> Sample:
    """One sample.

    Raises:
        UserError: essays are asked for and there are none, or the length is too short.
    """
    return _DRAWN[needles.haystack](asking, needles, _hide(asking, needles))


def _drawn(rng: random.Random, kind: Kind, wording: Wording) -> str:
    if kind == "numbers":
        return str(rng.randint(10 ** (_DIGITS - 1), 10**_DIGITS - 1))
    if kind == "words":
        return f"{rng.choice(wording.adjectives)}-{rng.choice(wording.nouns)}"
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _hide(asking: Asking, needles: Needles) -> _Hidden:
    rng = asking.rng
    keys = list[str]()
    while len(keys) < max(needles.keys, needles.queries):
        key = _drawn(rng, needles.key, asking.wording)
        keys += [key] if key not in keys else []
    values = {key: [_drawn(rng, needles.value, asking.wording) for _ in range(needles.values)] for key in keys}
    queries = rng.sample(keys, needles.queries)
    lines = [(_needle(asking, needles, key, value), key in queries) for key in keys for value in values[key]]
    rng.shuffle(lines)
    return _Hidden(
        tuple(lines), tuple(queries), tuple(value for key in queries for value in values[key]), needles.value
    )


def _needle(asking: Asking, needles: Needles, key: str, value: str) -> str:
    return fill(asking.wording.needle, {"type_needle_v": needles.value, "key": key, "value": value})


def _written(
    asking: Asking, hidden: _Hidden, context: str, places: list[tuple[int, int]], depths: list[float], group: str,
    **extra: Any,
) -> Sample:  # fmt: skip
    """The sample; its place and depth are those of the needle asked for, where it is one."""
    asked = [number for number, (_, wanted) in enumerate(hidden.needles) if wanted]
    template = asking.wording.niah if len(hidden.answers) > 1 else asking.wording.niah_one
    return asking.sample(
        template, context, hidden.fields, hidden.answers,
        place=places[asked[0]], depth=depths[asked[0]] if len(asked) == 1 else None, group=group, **extra,
    )  # fmt: skip


def _among_lines(
    asking: Asking, hidden: _Hidden, lines: Callable[[int], list[str]], fractions: list[float], group: str
) -> Callable[[int], Sample]:
    """Samples whose context is so many lines with the needles on lines of their own."""

    def build(count: int) -> Sample:
        at = places_between(fractions, count)
        context, places = insert_lines(lines(count), [needle for needle, _ in hidden.needles], at)
        return _written(asking, hidden, context, places, [place / max(count, 1) for place in at], group)

    return build


def _in_noise(asking: Asking, needles: Needles, hidden: _Hidden) -> Sample:
    noise = asking.wording.noise
    fractions = sorted(asking.rng.random() for _ in hidden.needles)
    build = _among_lines(asking, hidden, lambda count: [noise] * count, fractions, asking.task)
    return asking.fitted(noise_plan(asking.counter, noise, asking.room), build, "line of noise", len(hidden.needles))


def _among_needles(asking: Asking, needles: Needles, hidden: _Hidden) -> Sample:
    rng, taken = asking.rng, set(hidden.queries)
    lines, counts, total = list[str](), [np.zeros(0, np.int64)], 0
    fractions = sorted(rng.random() for _ in hidden.needles)
    while not lines or total <= asking.room * SLACK:
        block = list[str]()
        while len(block) < _BLOCK:
            key = _drawn(rng, needles.key, asking.wording)
            if key not in taken:
                block.append(_needle(asking, needles, key, _drawn(rng, needles.value, asking.wording)))
        counts.append(asking.counter.each([f"{line}\n" for line in block]))
        lines += block
        total += int(counts[-1].sum())
    build = _among_lines(asking, hidden, lambda count: lines[:count], fractions, "")
    return asking.fitted(ListedPlan(np.concatenate(counts)), build, "other needle", len(hidden.needles))


def _in_essays(asking: Asking, needles: Needles, hidden: _Hidden) -> Sample:
    options = asking.options
    if options.haystack is None:
        raise UserError(f"{asking.task}: it hides needles in essays; name texts by --haystack.")
    filler = filler_of(options.haystack, options.tokenizer, "prose", max(options.lengths), options.cache)
    stretch = filler.from_word(0)
    depths = sorted(asking.rng.sample(_DEPTHS, len(hidden.needles)))

    def build(count: int) -> Sample:
        text = stretch.take(count)
        breaks = stretch.breaks(len(text))
        at = [int(breaks[int((len(breaks) - 1) * depth)]) for depth in depths]
        parts, places, done, size = list[str](), list[tuple[int, int]](), 0, 0
        for place, (needle, _) in zip(at, hidden.needles, strict=True):
            before = text[done:place].strip()
            parts += [before] if before else []
            size += len(before) + 1 if before else 0
            places.append((size, size + len(needle)))
            parts.append(needle)
            size += len(needle) + 1
            done = place
        rest = text[done:].strip()
        context = " ".join([*parts, rest] if rest else parts)
        return _written(asking, hidden, context, places, depths, asking.task, haystack_repeats=stretch.repeats(count))

    return asking.fitted(stretch, build, "words of the haystack", 1)


_DRAWN = {"noise": _in_noise, "needle": _among_needles, "essay": _in_essays}
