"""Which documents are listed, and how often: the mix of each source (`mix`) made whole numbers by chance.

Of a class of lengths that is to be listed x times on average, every document is listed floor(x) times, and a random
choice of them once more: so no document is listed more than once more than another of its source and class. How many
are chosen is x n rounded up or down by chance, so that its mean is exact. The longest class of a source is then filled
up with documents until the budget, which a list never passes, is met to within one document. The same seed gives the
same list.

Cost: a few passes over the lengths and a shuffle of each class that is chosen from. Memory beside the lengths and
sources: 5 bytes a document (its place in the order of sources and classes, 8 bytes beyond 2^32 documents, and whether
it is chosen), and during a shuffle 8 a document of its class: 13 at most, however long the list becomes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.packing import _packing
from megatron_ultralong.data.resampling.mix import mix
from megatron_ultralong.data.resampling.policy import LengthPolicy, shares
from megatron_ultralong.data.shuffle import key
from megatron_ultralong.errors import UserError

Ints = npt.NDArray[np.int64]
AnyInts = npt.NDArray[Any]
BLOCK = 1 << 18
"""Documents that are looked at together: what is made of them for a moment stays small."""
_MOST_LISTED = 1 << 32


@dataclasses.dataclass(frozen=True)
class Selection:
    """The documents of a list, and what it says of each class. Indexed [source, class] where two-dimensional."""

    lengths: AnyInts
    """Integers [M], tokens of each document."""
    source_ids: AnyInts
    """Integers [M], the source of each."""
    bounds: Ints
    """The least length of each class but the first (see `LengthPolicy.bounds`)."""
    documents: Ints
    """int64 [sources, classes]: documents there are."""
    tokens: Ints
    """int64 [sources, classes]: tokens there are."""
    rounds: Ints
    """int64 [sources, classes]: times that every document is listed."""
    chosen: npt.NDArray[np.bool_]
    """bool [M]: whether a document is listed once more."""
    chosen_documents: Ints
    """int64 [sources, classes]: how many of those there are."""
    chosen_tokens: Ints
    """int64 [sources, classes]: their tokens."""
    budgets: list[int]
    """Tokens that each source should have; it never has more."""
    missing: list[int]
    """Tokens by which an impossible budget is missed; 0 for one that is met to within one document."""
    reasons: list[str]
    """Why each source misses its budget, for a sentence; empty for one that does not."""

    @property
    def listed(self) -> int:
        """Documents of the list, repeats counted."""
        return int((self.rounds * self.documents + self.chosen_documents).sum())

    def counts(self, begin: int, end: int) -> Ints:
        """int64: how often documents begin .. end - 1 are listed."""
        groups = _groups(self.lengths[begin:end], self.source_ids[begin:end], self.bounds)
        counts: Ints = self.rounds.reshape(-1)[groups] + self.chosen[begin:end]
        return counts

    def ids(self) -> Iterator[Ints]:
        """The list, ascending, a repeated document several times in a row (packing shuffles), in pieces."""
        for begin in range(0, len(self.lengths), BLOCK):
            ends = np.cumsum(self.counts(begin, begin + BLOCK))
            for first in range(0, int(ends[-1]), BLOCK):
                places = np.arange(first, min(first + BLOCK, int(ends[-1])), dtype=np.int64)
                yield begin + np.searchsorted(ends, places, side="right")


def select(
    lengths: AnyInts, source_ids: AnyInts, names: tuple[str, ...], policy: LengthPolicy, total: int | None, seed: int
) -> Selection:
    """Choose documents.

    Args:
        lengths: integers [M], tokens of each document.
        source_ids: integers [M], the source of each, an index into `names`.
        names: the sources.
        policy: what is short, what is long.
        total: tokens of the list; None: as many as there are in `lengths`.
        seed: of every choice.

    Raises:
        UserError: an option is out of its range.
    """
    policy.check()
    if total is not None and total < 1:
        raise UserError(f"total_tokens: {total} is no budget; give a positive number of tokens.")
    documents, tokens = _tally(lengths, source_ids, policy.bounds, len(names))
    own = [sum(row) for row in tokens.tolist()]
    wanted = sum(own) if total is None else total
    budgets = [round(wanted * share) for share in shares(own, names, policy.weights)]
    selection = Selection(
        lengths=lengths,
        source_ids=source_ids,
        bounds=policy.bounds,
        documents=documents,
        tokens=tokens,
        rounds=np.zeros_like(documents),
        chosen=np.zeros(len(lengths), dtype=np.bool_),
        chosen_documents=np.zeros_like(documents),
        chosen_tokens=np.zeros_like(documents),
        budgets=budgets,
        missing=[0] * len(names),
        reasons=[""] * len(names),
    )
    members = _grouped(selection)
    for source, name in enumerate(names):
        _fill(selection, members, source, policy, key(seed, "resample", name))
    if selection.listed > _MOST_LISTED:
        raise UserError(
            f"total_tokens: {wanted} tokens list {selection.listed} documents, more than {_MOST_LISTED}; "
            "lower it, or let training go over the list several times."
        )
    return selection


def _groups(lengths: AnyInts, source_ids: AnyInts, bounds: Ints) -> Ints:
    """int64: source x classes + class of each document."""
    classes = np.searchsorted(bounds, lengths, side="right")
    groups: Ints = source_ids.astype(np.int64) * (len(bounds) + 1) + classes
    return groups


def _tally(lengths: AnyInts, source_ids: AnyInts, bounds: Ints, sources: int) -> tuple[Ints, Ints]:
    """Documents and tokens of each source and class."""
    classes = len(bounds) + 1
    documents, tokens = np.zeros((2, sources * classes), dtype=np.int64)
    for begin in range(0, len(lengths), BLOCK):
        some = lengths[begin : begin + BLOCK]
        groups = _groups(some, source_ids[begin : begin + BLOCK], bounds)
        documents += np.bincount(groups, minlength=len(documents))
        tokens += np.bincount(groups, weights=some, minlength=len(tokens)).astype(np.int64)  # exact: below 2^53
    return documents.reshape(sources, classes), tokens.reshape(sources, classes)


class _Members:
    """The documents of each source and class, ascending.

    Args:
        order: every document, by source and class.
        starts: where each source and class begins in it.
    """

    def __init__(self, order: AnyInts, starts: Ints) -> None:
        self._order, self._starts = order, starts

    def of(self, group: int) -> AnyInts:
        return self._order[self._starts[group] : self._starts[group + 1]]


def _grouped(selection: Selection) -> _Members:
    """Sort the documents by source and class: a counting sort, a block at a time."""
    lengths, source_ids = selection.lengths, selection.source_ids
    starts = np.append(0, np.cumsum(selection.documents))
    next_place = starts[:-1].copy()
    small = selection.documents.size <= 1 << 16  # numpy sorts numbers of 16 bits by their digits
    order = np.empty(len(lengths), dtype=np.uint32 if len(lengths) <= 1 << 32 else np.int64)
    for begin in range(0, len(lengths), BLOCK):
        groups = _groups(lengths[begin : begin + BLOCK], source_ids[begin : begin + BLOCK], selection.bounds)
        here = np.argsort(groups.astype(np.uint16) if small else groups, kind="stable")
        groups = groups[here]
        counts = np.bincount(groups, minlength=len(next_place))
        within = np.arange(len(groups)) - (np.cumsum(counts) - counts)[groups]
        order[next_place[groups] + within] = begin + here
        next_place += counts
    return _Members(order, starts)


def _fill(selection: Selection, members: _Members, source: int, policy: LengthPolicy, seed: int) -> None:
    """Choose the documents of one source, its longest class last."""
    documents, tokens = selection.documents[source].tolist(), selection.tokens[source].tolist()
    recipe = mix(documents, tokens, selection.budgets[source], policy)
    left = selection.budgets[source]
    used = [number for number, rate in enumerate(recipe.rates) if rate]
    for number in used:
        fills = recipe.met and number == used[-1]
        if fills:  # by tokens, and as often as they go in whole
            rounds, most = left // max(tokens[number], 1), policy.max_repeats
            more = documents[number]
            if most is not None and rounds >= most:
                rounds, more = most, 0
        else:  # by documents
            wanted = _rounded(recipe.rates[number] * documents[number], key(seed, "part", number))
            rounds = min(wanted // documents[number], left // max(tokens[number], 1))
            more = min(wanted - rounds * documents[number], documents[number])
        left -= rounds * tokens[number]
        selection.rounds[source, number] = rounds
        if more:
            use = ("round", left) if fills else _use(number, len(recipe.rates))
            left -= _choose(selection, members, source, number, more, left, key(seed, *use))
    _judge(selection, members, source, policy, left, recipe.met)


def _use(number: int, classes: int) -> tuple[str | int, ...]:
    """What the shuffle of a class is called among the uses of the seed."""
    if number >= classes - 2:
        return ("middle",) if number == classes - 2 else ("long",)
    return ("short", number) if number else ("short",)


def _rounded(value: Fraction, chance: int) -> int:
    """`value` rounded up with its fraction as the probability: a whole number stays as it is."""
    return int(value + Fraction(chance, 1 << 64))


def _choose(
    selection: Selection, members: _Members, source: int, number: int, most: int, budget: int, shuffle: int
) -> int:
    """List up to `most` documents of a class once more, in random order, each if it fits the budget; their tokens."""
    own = members.of(source * (len(selection.bounds) + 1) + number)
    shortest = int(selection.bounds[number - 1]) if number else 1
    order = _packing.permutation(len(own), shuffle)[:most]
    left, documents = budget, 0
    for begin in range(0, most, BLOCK):
        if left < shortest:
            break
        some = own[order[begin : begin + BLOCK]]
        sizes = selection.lengths[some].astype(np.int64)
        taken = _that_fit(sizes, left)
        selection.chosen[some[taken]] = True
        left -= int(sizes[taken].sum())
        documents += len(taken)
    selection.chosen_documents[source, number] = documents
    selection.chosen_tokens[source, number] = budget - left
    return budget - left


def _that_fit(sizes: Ints, budget: int) -> Ints:
    """Which of `sizes` are taken, in their order, each if it still fits into the budget: what a plain loop would take.

    Each turn takes the run of documents up to the first that does not fit, then drops all that are too large for
    what is left.
    """
    taken = []
    order = np.arange(len(sizes), dtype=np.int64)
    while len(order):
        ends = np.cumsum(sizes[order])
        run = int(np.searchsorted(ends, budget, side="right"))
        taken.append(order[:run])
        budget -= int(ends[run - 1]) if run else 0
        rest = order[run:]
        order = rest[sizes[rest] <= budget]
    return np.concatenate(taken) if taken else order


def _judge(selection: Selection, members: _Members, source: int, policy: LengthPolicy, left: int, met: bool) -> None:
    """Name a budget that could not be met, of which `left` tokens are missing."""
    documents = selection.documents[source].tolist()
    if left and not met and not documents[-1]:
        reason = f"has no document over {policy.long_above:,} tokens to repeat"
    elif left and policy.max_repeats is not None and documents[-1]:
        own = members.of((source + 1) * len(documents) - 1)
        everywhere = selection.rounds[source, -1] == policy.max_repeats
        if not everywhere or left < int(selection.lengths[own].min()):
            return
        reason = f"may list its {len(own):,} long documents {policy.max_repeats} times at most (max_repeats)"
    else:
        return
    selection.missing[source], selection.reasons[source] = left, reason
