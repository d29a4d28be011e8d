"""RULER's frequent words extraction: coded words whose frequencies follow a zeta distribution, and the three foremost.

Words are six random letters, one for each 50 tokens of the length. Of N words the one of rank k occurs
floor(N k^-2 / zeta(2)) times; rank 1 is noise ("..."), ranks 2 to 4 are the answer. Theirs steps N by length / 32, so
that a sample fills its length to within 1/32; here N is the largest that fits.
"""

from __future__ import annotations

import math
import string

import numpy as np
import numpy.typing as npt

from megatron_ultralong.evaluation.benchmarks.counting import Counts
from megatron_ultralong.evaluation.benchmarks.ruler.asking import Asking
from megatron_ultralong.evaluation.benchmarks.words import array_rng
from megatron_ultralong.evaluation.samples import Sample, TooShortError

_LETTERS = 6
_ALPHA = 2.0
_ZETA = math.pi**2 / 6
_TOKENS_A_WORD = 50
_ANSWERS = slice(1, 4)
_LEAST = 5  # words, of which four may be foremost
_NOISE = "..."


class _Frequencies:
    """How often each word occurs among N; a `fitting.Plan` whose unit is one more of N.

    Args:
        tokens: of each word, by rank.
        most: for N.
    """

    def __init__(self, tokens: Counts, most: int) -> None:
        self._tokens, self._most = tokens, most
        self._shares = np.arange(1, len(tokens) + 1, dtype=np.float64) ** -_ALPHA / _ZETA

    def counts(self, total: int) -> npt.NDArray[np.int64]:
        """Occurrences by rank."""
        return (total * self._shares).astype(np.int64)

    def planned(self, count: int) -> int:
        """See `fitting.Plan`."""
        return int(self.counts(count) @ self._tokens)

    def units(self, tokens: int) -> int:
        """See `fitting.Plan`; a search of some 20 steps over the words' counts."""
        low, high = 0, self._most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.planned(middle) <= tokens else (low, middle - 1)
        return low


def draw_frequent_words(asking: Asking) -> Sample:
    """One sample.

    Raises:
        TooShortError: the length is too short, also where it does not tell the answer from the next word.
    """
    chance = array_rng(asking.rng)
    words = _coded_words(chance, max(asking.room // _TOKENS_A_WORD, _LEAST))
    plan = _Frequencies(asking.counter.each([f" {word}" for word in words]), 4 * max(asking.room, 0))
    order = int(chance.integers(1 << 62))
    vocabulary = np.array(words, dtype=object)

    def build(total: int) -> Sample:
        text = np.repeat(vocabulary, plan.counts(total))
        np.random.Generator(np.random.PCG64(order)).shuffle(text)
        return asking.sample(
            asking.wording.fwe, " ".join(text.tolist()), {}, tuple(words[_ANSWERS]),
            candidates=int((plan.counts(total)[1:] > 0).sum()), total=total,
        )  # fmt: skip

    sample = asking.fitted(plan, build, "coded words")
    second, third, fourth, fifth = plan.counts(int(sample.extra["total"]))[1:5].tolist()
    if not second > third > fourth > fifth:
        raise TooShortError(
            f"{asking.task}: length {asking.length} is too short: its words occur {second}, {third}, {fourth} and "
            f"{fifth} times, which does not tell the three most frequent ones; raise --lengths."
        )
    return sample


def _coded_words(chance: np.random.Generator, count: int) -> list[str]:
    """Different words in random order, the first of which is the noise."""
    letters = np.array(list(string.ascii_lowercase))
    words: dict[str, None] = {_NOISE: None}
    while len(words) < count:
        drawn = letters[chance.integers(len(letters), size=(count, _LETTERS))]
        words |= dict.fromkeys("".join(row) for row in drawn.tolist())
    return list(words)[:count]
