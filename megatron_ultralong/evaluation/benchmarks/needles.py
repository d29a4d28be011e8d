"""Needles by depth and length: the grid of heatmaps, and the short text with several keys that the quickstart recalls.

A text is consecutive lines of the haystack, cut at a word where the length ends, with needles on lines of their own
between sentences. In chat form the user's turn is the text, a blank line and the question; in base form a sentence
stands before the text and "Answer:" is the answer's prefix. Samples of one trial begin at the same word of the haystack
whatever their length and depth, so that all share what stands before their needles: that is their `group`.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Iterator

import numpy as np

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks import needle_kinds
from megatron_ultralong.evaluation.benchmarks.counting import counter_of
from megatron_ultralong.evaluation.benchmarks.filler import Filler, Stretch, filler_of
from megatron_ultralong.evaluation.benchmarks.fitting import fit
from megatron_ultralong.evaluation.benchmarks.keys import BEFORE, PREFIX, QUESTION, depth_grid
from megatron_ultralong.evaluation.benchmarks.needle_kinds import Hidden, Hide
from megatron_ultralong.evaluation.benchmarks.ruler.ruler_scoring import match_all
from megatron_ultralong.evaluation.registry import MakeOptions, Task
from megatron_ultralong.evaluation.samples import Sample, TooShortError

_STARTS = 1 << 16
"""Tokens of the haystack in which a sample's text may begin."""


def tasks() -> list[Task]:
    """The grid of each kind."""
    return [
        grid_task("needles", needle_kinds.digits, 32),
        grid_task("needles/sentence", needle_kinds.sentence, 48),
        grid_task("needles/several", needle_kinds.several, 96, exact=False),
        grid_task("needles/distractors", needle_kinds.distractors, 32),
    ]


def grid_task(name: str, hide: Hide, budget: int, exact: bool = True, grid: bool = True) -> Task:
    """A task of one kind of needle; without a grid each sample begins at a word of its own."""

    def make(options: MakeOptions) -> Iterator[Sample]:
        depths = depth_grid(options.depths) if grid else [0.5]
        count = len(depths) * options.trials if grid else options.count
        for length in options.lengths:
            for index in options.only if options.only is not None else range(count):
                trial, cell = divmod(index, len(depths))
                chance = f"{name} {options.seed} {length} {depths[cell]} {trial}"
                group = f"needles {options.seed} {trial}" if grid else ""
                asking = _Asking(options, name, budget, length, index, group)
                yield asking.draw(hide(random.Random(chance), depths[cell]), random.Random(group or chance))

    return Task(
        name=name,
        budget=budget,
        score=match_all,
        make=make,
        exact=exact,
        stop=("\n",),
        chance=needle_kinds.chance_of(hide),
        split=True,
        grid=grid,
    )


@dataclasses.dataclass(frozen=True)
class _Asking:
    """What a sample is made for."""

    options: MakeOptions
    task: str
    budget: int
    length: int
    index: int
    group: str

    def draw(self, hidden: Hidden, start: random.Random) -> Sample:
        """The sample with the most words that fit."""
        options, counter = self.options, counter_of(self.options.tokenizer)
        if options.haystack is None:
            raise UserError(f"{self.task}: it hides needles in texts; name them by --haystack.")
        tokens = max(options.lengths) + _STARTS
        filler = filler_of(options.haystack, options.tokenizer, "lines", tokens, options.cache)
        stretch = filler.from_word(start.choice(_first_words(filler)))
        best: dict[int, Sample] = {}

        def measure(count: int) -> int:
            sample = self._written(hidden, stretch, count)
            tokens = counter.prompt(sample)
            if tokens <= self.length - self.budget and count >= max(best, default=0):
                best.clear()
                best[count] = dataclasses.replace(sample, prompt_tokens=tokens)
            return tokens

        found = fit(stretch, measure, self.length - self.budget)
        if found is None or found[0] == 0:
            raise TooShortError(
                f"{self.task}: length {self.length} is too short: needles, question and answer take "
                f"{measure(0) + self.budget} tokens, {self.budget} of them the answer's; raise --lengths."
            )
        return best[found[0]]

    def _written(self, hidden: Hidden, stretch: Stretch, count: int) -> Sample:
        text, places, depths = _insert(stretch, count, hidden)
        if self.options.form == "chat":
            before, after, prefix, lead_in = "", f"\n\n{hidden.question}", "", hidden.lead_in
        else:
            before, after = BEFORE, QUESTION.format(question=hidden.question)
            prefix, lead_in = PREFIX, f" {hidden.lead_in}"
        if self.options.lead_in:
            prefix, lead_in = f"{prefix}{lead_in}".rstrip(), " "
        whole = before + text + after
        shift = len(before) - (len(whole) - len(whole.lstrip()))
        place = places[hidden.main]
        return Sample(
            task=self.task,
            index=self.index,
            input=whole.lstrip(),
            outputs=hidden.answers,
            length=self.length,
            answer_prefix=prefix,
            max_new_tokens=self.budget,
            prompt_tokens=0,
            form=self.options.form,
            depth=round(hidden.depths[hidden.main], 4) if self.group else None,
            lead_in=lead_in,
            place=(place[0] + shift, place[1] + shift),
            group=self.group,
            extra={
                "wording": "ours",
                "depths_reached": [round(depth, 4) for depth in depths],
                "haystack_repeats": stretch.repeats(count),
            },
        )


@functools.lru_cache(maxsize=4)
def _first_words(filler: Filler) -> list[int]:
    """Where a sample's text may begin: sentences and lines of the haystack's first tokens, whatever is read of it."""
    words = filler.first_words()
    return [int(word) for word in words[: np.searchsorted(words, filler.word_at(_STARTS))]] or [0]


def _insert(stretch: Stretch, count: int, hidden: Hidden) -> tuple[str, list[tuple[int, int]], list[float]]:
    """The text with its needles, where they stand in it, and the depths that breaks allow."""
    text = stretch.take(count)
    parts, places, depths, size, done = list[str](), list[tuple[int, int]](), list[float](), 0, 0
    for needle, depth in zip(hidden.needles, hidden.depths, strict=True):
        place, reached = stretch.break_near(len(text), depth) if text else (0, depth)
        before = text[done:place].rstrip(" \n")
        parts += [before] if before else []
        size += len(before) + 1 if before else 0
        places.append((size, size + len(needle)))
        parts.append(needle)
        size += len(needle) + 1
        depths.append(reached)
        done = place
    rest = text[done:]
    return "\n".join([*parts, rest] if rest.strip() else parts), places, depths
