"""The most filler that fits a length: planned from counts of its units, measured on whole prompts a few times.

Token counts of units add up to that of the whole in byte-level BPE, and nearly so elsewhere. So the plan's differences
are trusted and its sums are not: after each measurement the next try is as far off as the room that was left says, in
units at the price measured so far. Two whole encodings are usual, `MOST` the bound. What is returned was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

MOST = 12
"""Whole prompts encoded for one sample, at most."""

SLACK = 1.3
"""Units are drawn for so many times the room, since they may count more alone than in a text."""


class Plan(Protocol):
    """What units of filler cost."""

    def planned(self, count: int) -> int:
        """Tokens of the first `count` units; ascending in it."""
        ...

    def units(self, tokens: int) -> int:
        """The most units whose planned tokens are at most `tokens`; 0 where none are."""
        ...


class ListedPlan:
    """Units with a count each, which end.

    Args:
        tokens: of each unit, int [units].
    """

    def __init__(self, tokens: npt.NDArray[np.integer]) -> None:
        self._sums = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])

    def planned(self, count: int) -> int:
        """See `Plan`."""
        return int(self._sums[count])

    def units(self, tokens: int) -> int:
        """See `Plan`."""
        return max(int(np.searchsorted(self._sums, tokens, side="right")) - 1, 0)


def fit(plan: Plan, measure: Callable[[int], int], limit: int) -> tuple[int, int] | None:
    """The most units that fit.

    Args:
        plan: estimates.
        measure: tokens of the whole prompt with so many units, exactly.
        limit: tokens that it may have.

    Returns:
        How many, and the tokens with so many; None if it does not fit with none.
    """
    fixed = measure(0)
    if fixed > limit:
        return None
    low, low_tokens, high = 0, fixed, -1
    count = plan.units(limit - fixed)
    for _ in range(MOST - 1):
        if count <= low or (high >= 0 and count >= high):
            break
        tokens = measure(count)
        if tokens <= limit:
            low, low_tokens = count, tokens
        else:
            high = count
        price = max(tokens - fixed, 1) / max(plan.planned(count), 1)
        count = plan.units(plan.planned(count) + round((limit - tokens) / price))
        if tokens > limit:
            count = max(count, low + 1)
        if high >= 0:
            count = min(count, high - 1)
    return low, low_tokens
