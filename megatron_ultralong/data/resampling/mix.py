"""How often a document of each length is listed: the recipe at a source's natural size, scaled to its budget.

A source has T tokens; class c of lengths has n_c documents and T_c tokens. At natural size a document is listed
r_c times on average: a short one k_c / n_c times, where k_c is `keep_short` x n_c to the nearest whole document, one in
between once, and a long one (T - what is kept of the others) / T_long times, at most `max_repeats`. That is a list of
P = sum of r_c T_c tokens, T unless there is no long document or `max_repeats` binds. A budget of B tokens lists a
document s r_c times,

    s = min(max(B / T, min(1, B / P)), max_repeats / largest r_c),

so that the share of class c, r_c T_c / P, is the same for every budget. s P = B wherever a source can give B: with long
documents always, up to `max_repeats`; without them up to P, beyond which it lacks what it lacked at natural size.

Pure and exact: whole numbers and fractions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from megatron_ultralong.data.resampling.policy import LengthPolicy


@dataclasses.dataclass(frozen=True)
class Mix:
    """The recipe of one source for its budget."""

    rates: tuple[Fraction, ...]
    """Of each class: how often a document is listed on average, s r_c."""
    met: bool
    """Whether the list so described has the budget's tokens."""


def mix(documents: Sequence[int], tokens: Sequence[int], budget: int, policy: LengthPolicy) -> Mix:
    """The mix of a source.

    Args:
        documents: of each class (see `LengthPolicy.bounds`).
        tokens: of each class.
        budget: tokens that the source should have.
        policy: what is short, what is long.
    """
    natural = _natural(documents, tokens, policy)
    size = sum((rate * count for rate, count in zip(natural, tokens, strict=True)), Fraction(0))
    if not size or not budget:
        return Mix((Fraction(0),) * len(natural), met=not budget)
    scale = max(Fraction(budget, sum(tokens)), min(Fraction(1), budget / size))
    if policy.max_repeats is not None:
        scale = min(scale, policy.max_repeats / max(natural))
    return Mix(tuple(scale * rate for rate in natural), met=scale * size >= budget)


def _natural(documents: Sequence[int], tokens: Sequence[int], policy: LengthPolicy) -> list[Fraction]:
    """r_c of each class."""
    rates = [Fraction(0)] * len(documents)
    for band, keep in enumerate(policy.keep_short):
        if documents[band]:
            rates[band] = Fraction(round(keep * documents[band]), documents[band])
    rates[-2] = Fraction(int(documents[-2] > 0))
    if tokens[-1]:
        kept = sum((rate * count for rate, count in zip(rates, tokens, strict=True)), Fraction(0))
        rates[-1] = Fraction(sum(tokens) - kept) / tokens[-1]
        if policy.max_repeats is not None:
            rates[-1] = min(rates[-1], Fraction(policy.max_repeats))
    return rates
