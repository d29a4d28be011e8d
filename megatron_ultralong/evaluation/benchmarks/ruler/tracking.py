"""RULER's variable tracking: one chain of assignments in noise, and which variables hold its value.

A solved example comes first: another chain, in 500 tokens of noise. One unit is a line of noise.
"""

from __future__ import annotations

import random
import string

from megatron_ultralong.evaluation.benchmarks.fitting import fit
from megatron_ultralong.evaluation.benchmarks.ruler.asking import Asking
from megatron_ultralong.evaluation.benchmarks.ruler.lines import insert_lines, noise_plan, places_between
from megatron_ultralong.evaluation.samples import Sample

HOPS = 4
"""Assignments from variable to variable; one more variable holds the value."""
_EXAMPLE = 500  # tokens
_LETTERS, _EXAMPLE_LETTERS = 5, 3


def draw_tracking(asking: Asking) -> Sample:
    """One sample.

    Raises:
        TooShortError: the length is too short.
    """
    before = _example(asking)
    variables, chain, value = _chain(asking.rng, _LETTERS)
    fractions = sorted(asking.rng.random() for _ in chain)
    noise = asking.wording.noise

    def build(count: int) -> Sample:
        context, places = insert_lines([noise] * count, chain, places_between(fractions, count))
        return asking.sample(
            asking.wording.vt,
            context,
            {"query": value, "num_v": HOPS + 1},
            tuple(variables),
            before=before,
            place=places[0],
        )

    return asking.fitted(noise_plan(asking.counter, noise, asking.room), build, "lines of noise", len(chain))


def _chain(rng: random.Random, letters: int) -> tuple[list[str], list[str], str]:
    """Variables in order, the assignments, and the value."""
    variables = list[str]()
    while len(variables) <= HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        variables += [name] if name not in variables else []
    value = str(rng.randrange(10000, 99999))
    pairs = zip(variables, [value, *(f"VAR {name}" for name in variables)], strict=False)
    return variables, [f"VAR {name} = {held}" for name, held in pairs], value


def _example(asking: Asking) -> str:
    """Another chain with its solution, in as much noise as 500 tokens hold."""
    variables, chain, value = _chain(asking.rng, _EXAMPLE_LETTERS)
    fractions = sorted(asking.rng.random() for _ in chain)
    noise, template = asking.wording.noise, asking.wording.vt
    fields = {"query": value, "num_v": HOPS + 1}

    def write(count: int) -> str:
        context, _ = insert_lines([noise] * count, chain, places_between(fractions, count))
        text, prefix, _ = template.compose(context, fields)
        return text + prefix

    plan = noise_plan(asking.counter, noise, _EXAMPLE)
    found = fit(plan, lambda count: asking.counter.count(write(count)), _EXAMPLE)
    return f"{write(found[0] if found else 0)} {' '.join(variables)}\n\n"
