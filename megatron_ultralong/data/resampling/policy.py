"""Which documents to train on, and how often: short ones down, long ones up, every source its share.

The policy is the paper's (arXiv 2504.06214, after Fu et al. 2024, arXiv 2402.10171): documents under 4,096 tokens
are kept with probability 0.1 (here: exactly a tenth, chosen at random); the tokens so lost are refilled from the
source's documents over 8,192 tokens, so that each source ends with total x its share to within one long document.
Its share is that of its tokens before, or follows from weights. Documents in between are kept once. Of a source's
long documents none is listed more than once more than another. A budget that cannot be met is an entry in the report
and a warning, never silently missed.

Pure: no files, no process groups; the same seed gives the same list. Cost: a few passes over the lengths and two
shuffles a source, in numpy.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.shuffle import key, shuffled
from megatron_ultralong.errors import UserError

Ints = npt.NDArray[np.int64]
_MOST_LISTED = 1 << 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthPolicy:
    """Lengths in tokens of a document."""

    short_below: tuple[int, ...] = (4096,)
    """Documents shorter than this are thinned out; of several lengths, ascending, the first that is longer rules."""
    keep_short: tuple[float, ...] = (0.1,)
    """Share of a source's documents that stays, one for each of `short_below`, chosen at random (to the nearest
    whole document)."""
    long_above: int = 8192
    """Documents longer than this are repeated to refill their source."""
    max_repeats: int | None = None
    """Most times a document may be listed; None: as often as its source needs."""
    weights: Mapping[str, float] | None = None
    """Share of the total of each source, relative to the others'; None keeps the mix that there is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceResult:
    """What became of one source."""

    name: str
    budget: int
    """Tokens it should have afterwards; it never has more."""
    counts: Ints
    """int64 [documents of the source]: how often each is listed."""
    lengths: Ints
    """int64 [documents of the source]: tokens of each."""
    missing: int
    """Tokens by which an impossible budget is missed; 0 for one that is met to within one document."""
    unmet: str | None
    """Why the budget could not be met, in a sentence; None if it was."""

    @property
    def tokens(self) -> int:
        """Tokens listed."""
        return int(self.counts @ self.lengths)


def resample(
    lengths: Ints, source_ids: Ints, names: tuple[str, ...], policy: LengthPolicy, total: int | None, seed: int
) -> tuple[Ints, list[SourceResult]]:
    """Choose documents.

    Args:
        lengths: int64 [M], tokens of each document.
        source_ids: int64 [M], the source of each, an index into `names`.
        names: the sources.
        policy: what is short, what is long.
        total: tokens of the list; None: as many as there are in `lengths`.
        seed: of every choice.

    Returns:
        int64 [listed]: document ids in ascending order, a repeated one several times in a row (packing shuffles);
        and one result a source.

    Raises:
        UserError: an option is out of its range.
    """
    _check(policy, total)
    wanted = int(lengths.sum()) if total is None else total
    counts = np.zeros(len(lengths), dtype=np.int64)
    results = []
    members_of = _grouped(source_ids, len(names))
    shares = _shares([int(lengths[members].sum()) for members in members_of], names, policy.weights)
    for name, members, share in zip(names, members_of, shares, strict=True):
        sizes = lengths[members]
        budget = round(wanted * share)
        counts[members], missing, reason = _fill(sizes, budget, policy, key(seed, "resample", name))
        unmet = f"source '{name}' lacks {missing:,} of {budget:,} tokens: it {reason}" if missing else None
        results.append(
            SourceResult(name=name, budget=budget, counts=counts[members], lengths=sizes, missing=missing, unmet=unmet)
        )
    if int(counts.sum()) > _MOST_LISTED:
        raise UserError(
            f"total_tokens: {wanted} tokens list {int(counts.sum())} documents, more than {_MOST_LISTED}; "
            "lower it, or let training go over the list several times."
        )
    return np.repeat(np.arange(len(lengths), dtype=np.int64), counts), results


def _check(policy: LengthPolicy, total: int | None) -> None:
    if len(policy.short_below) != len(policy.keep_short):
        raise UserError(
            f"keep_short: {len(policy.keep_short)} shares for {len(policy.short_below)} lengths of short_below; "
            "give one for each."
        )
    for share in policy.keep_short:
        if not 0 <= share <= 1:
            raise UserError(f"keep_short: {share} is no probability; give a number from 0 to 1.")
    if list(policy.short_below) != sorted(set(policy.short_below)):
        raise UserError(f"short_below: {list(policy.short_below)} do not ascend; put the shortest first.")
    if policy.long_above < 0:
        raise UserError(f"long_above: {policy.long_above} is no length; give 0 or more.")
    if policy.long_above + 1 < max(policy.short_below, default=0):
        raise UserError(
            f"long_above: {policy.long_above} lies below short_below {max(policy.short_below)}, so that a document "
            "could be both short and long; raise it."
        )
    if policy.max_repeats is not None and policy.max_repeats < 1:
        raise UserError(f"max_repeats: {policy.max_repeats} lists no document at all; give at least 1.")
    if total is not None and total < 1:
        raise UserError(f"total_tokens: {total} is no budget; give a positive number of tokens.")


def _grouped(source_ids: Ints, sources: int) -> list[Ints]:
    """The documents of each source, ascending: one sort, however many sources."""
    order = np.argsort(source_ids, kind="stable")
    bounds = np.searchsorted(source_ids[order], np.arange(sources + 1))
    return [order[begin:end] for begin, end in itertools.pairwise(bounds.tolist())]


def _shares(tokens: list[int], names: tuple[str, ...], weights: Mapping[str, float] | None) -> list[float]:
    """The share of the total that each source should have."""
    if weights is None:
        return [count / max(sum(tokens), 1) for count in tokens]
    for name, weight in weights.items():
        if name not in names:
            raise UserError(f"weights: there is no source '{name}'; the sources are {_listed(names)}.")
        if not 0 <= weight < float("inf"):
            raise UserError(f"weights: {weight} for source '{name}' is no share; give 0 or a positive number.")
    without = [name for name in names if name not in weights]
    if without:
        raise UserError(f"weights: source {_listed(without)} has none; give one for each, 0 to leave a source out.")
    if not any(weights.values()):
        raise UserError("weights: all are 0; give at least one source a positive number.")
    scaled = [weights[name] / max(weights.values()) for name in names]  # whose sum cannot overflow
    return [weight / sum(scaled) for weight in scaled]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _fill(sizes: Ints, budget: int, policy: LengthPolicy, seed: int) -> tuple[Ints, int, str]:
    """How often each document of one source is listed; the tokens it lacks if its budget is impossible, and why."""
    if budget == 0:
        return np.zeros(len(sizes), dtype=np.int64), 0, ""
    counts = _thinned(sizes, policy, seed)
    missing = budget - int(counts @ sizes)
    if missing < 0:
        kept = _that_fit(shuffled(np.flatnonzero(counts), seed, "thin"), sizes, budget)
        counts[:] = 0
        counts[kept] = 1
        return counts, 0, ""
    long = np.flatnonzero(sizes > policy.long_above)
    if not len(long):
        return counts, missing, f"has no document over {policy.long_above:,} tokens to repeat"
    most = np.iinfo(np.int64).max if policy.max_repeats is None else policy.max_repeats
    whole_rounds = min(missing // int(sizes[long].sum()), most - 1)
    counts[long] += whole_rounds
    missing -= whole_rounds * int(sizes[long].sum())
    chosen = _that_fit(shuffled(long[counts[long] < most], seed, "round", missing), sizes, missing)
    counts[chosen] += 1
    missing -= int(sizes[chosen].sum())
    if missing >= int(sizes[long].min()) and int(counts[long].min()) == most:
        return counts, missing, f"may list its {len(long):,} long documents {most} times at most (max_repeats)"
    return counts, 0, ""


def _thinned(sizes: Ints, policy: LengthPolicy, seed: int) -> Ints:
    """1 for each document that stays, 0 for the short ones that do not."""
    counts = np.ones(len(sizes), dtype=np.int64)
    shortest = 0
    for band, (below, keep) in enumerate(zip(policy.short_below, policy.keep_short, strict=True)):
        short = np.flatnonzero((sizes >= shortest) & (sizes < below))
        use = ("short", band) if band else ("short",)
        counts[shuffled(short, seed, *use)[round(keep * len(short)) :]] = 0
        shortest = below
    return counts


def _that_fit(order: Ints, sizes: Ints, budget: int) -> Ints:
    """Documents taken in `order`, each if it still fits into the budget: what a plain loop would take.

    Each turn takes the run of documents up to the first that does not fit, then drops all that are too large for
    what is left.
    """
    taken = []
    while len(order):
        ends = np.cumsum(sizes[order])
        run = int(np.searchsorted(ends, budget, side="right"))
        taken.append(order[:run])
        budget -= int(ends[run - 1]) if run else 0
        rest = order[run:]
        order = rest[sizes[rest] <= budget]
    return np.concatenate(taken) if taken else order
