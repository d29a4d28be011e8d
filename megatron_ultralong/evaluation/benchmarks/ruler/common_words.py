"""RULER's common words extraction: a numbered list in which ten words occur 30 times and all others 3 times.

A solved example comes first: 40 words, 10 and 3 times. Below 4,096 tokens the list's words occur 6 times and once, the
example's 20 words 3 times and once. One unit is one more of the other words, as often as they occur.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import numpy as np

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.counting import Counter, Counts
from megatron_ultralong.evaluation.benchmarks.fitting import ListedPlan
from megatron_ultralong.evaluation.benchmarks.ruler.asking import Asking
from megatron_ultralong.evaluation.benchmarks.ruler.ruler_clone import read_words
from megatron_ultralong.evaluation.benchmarks.words import MadeUp, array_rng
from megatron_ultralong.evaluation.samples import Sample

COMMON_WORDS = 10
_SHORT = 4096
_LEAST_TOKENS = 3  # of a numbered word


def draw_common_words(asking: Asking) -> Sample:
    """One sample.

    Raises:
        TooShortError: the length is too short.
        UserError: it needs more words than there are.
    """
    short = asking.length < _SHORT
    often, seldom = (6, 1) if short else (30, 3)
    rng, template = asking.rng, asking.wording.cwe
    before = _example(asking, rng, *((20, 3, 1) if short else (40, 10, 3)))
    chance = rng.getrandbits(64)
    source = asking.wording.words
    common, others = _split(rng, asking.wording.common_words, len(asking.wording.common_words))
    plan = _plan(asking, common, others, often, seldom)
    if plan.planned(len(others)) < asking.room:  # it may need more
        source, words = _more_words(asking, max(asking.room, 0) // (seldom * _LEAST_TOKENS) + COMMON_WORDS + 1)
        common, others = _split(rng, words, max(asking.room, 0) // (seldom * _LEAST_TOKENS) + COMMON_WORDS + 1)
        plan = _plan(asking, common, others, often, seldom)

    def build(count: int) -> Sample:
        context = _listed(random.Random(chance), common, others[:count], often, seldom)
        return asking.sample(
            template, context, {"num_cw": COMMON_WORDS}, tuple(common), before=before,
            candidates=COMMON_WORDS + count, words=source,
        )  # fmt: skip

    return asking.fitted(plan, build, "other words", COMMON_WORDS)


def _split(rng: random.Random, words: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """Common words and others, drawn."""
    drawn = rng.sample(words, min(count, len(words)))
    return drawn[:COMMON_WORDS], drawn[COMMON_WORDS:]


def _more_words(asking: Asking, most: int) -> tuple[str, Sequence[str]]:
    """The longer list and its name, which holds `most` words where the length may need them."""
    path = asking.wording.more_words
    source, words = ("official", read_words(path)) if path is not None else ("made up", MadeUp())
    if len(words) < most // 2:
        raise UserError(
            f"{asking.task}: length {asking.length} needs more than the {len(words):,} words of the {source} list; "
            "lower --lengths."
        )
    return source, words


def _listed(rng: random.Random, common: list[str], others: list[str], often: int, seldom: int) -> str:
    """The list in random order: "1. word 2. word"."""
    words = np.array(common * often + others * seldom, dtype=object)
    array_rng(rng).shuffle(words)
    return " ".join([f"{number}. {word}" for number, word in enumerate(words.tolist(), start=1)])


def _example(asking: Asking, rng: random.Random, count: int, often: int, seldom: int) -> str:
    words = rng.sample(asking.wording.common_words, count)
    context = _listed(rng, words[:COMMON_WORDS], words[COMMON_WORDS:], often, seldom)
    text, prefix, _ = asking.wording.cwe.compose(context, {"num_cw": COMMON_WORDS})
    solution = " ".join(f"{number}. {word}" for number, word in enumerate(words[:COMMON_WORDS], start=1))
    return f"{text}{prefix} {solution}\n"


def _plan(asking: Asking, common: list[str], others: list[str], often: int, seldom: int) -> ListedPlan:
    """What one more word costs: its tokens as often as it occurs, and those of the numbers that this takes."""
    words = asking.counter.each([f" {word}" for word in others])
    ends = len(common) * often + seldom * np.arange(len(others) + 1)
    numbers = _number_tokens(asking.counter, 1 << int(ends[-1]).bit_length())[: ends[-1]]
    return ListedPlan(seldom * words + np.diff(np.concatenate([[0], np.cumsum(numbers)])[ends]))


@functools.lru_cache(maxsize=4)
def _number_tokens(counter: Counter, count: int) -> Counts:
    """Tokens of " 1." to the last number."""
    return counter.each([f" {number}." for number in range(1, count + 1)])
