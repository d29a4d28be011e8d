"""Which documents to train on, and how often: short ones down, long ones up, every source keeping its share.

The policy is the paper's (arXiv 2504.06214, after Fu et al. 2024, arXiv 2402.10171): documents under 4,096 tokens
are kept with probability 0.1 (here: exactly a tenth, chosen at random); the tokens so lost are refilled from the
source's documents over 8,192 tokens, so that each source ends with total x its share of the tokens before, to
within one long document. Documents in between are kept once. A budget that cannot be met is an entry in the report
and a warning, never silently missed.

Pure: no files, no process groups; the same seed gives the same list. Cost: a few passes over the lengths and one
shuffle a source and round of repetition, in numpy.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.order import key, shuffled
from megatron_ultralong.errors import UserError

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthPolicy:
    """Lengths in tokens of a document."""

    short_below: int = 4096
    """Documents shorter than this are thinned out."""
    keep_short: float = 0.1
    """Share of a source's short documents that stays, chosen at random (to the nearest whole document)."""
    long_above: int = 8192
    """Documents longer than this are repeated to refill their source."""
    max_repeats: int | None = None
    """Most times a document may be listed; None: as often as its source needs."""


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
    before = int(lengths.sum())
    wanted = before if total is None else total
    counts = np.zeros(len(lengths), dtype=np.int64)
    results = []
    for source, name in enumerate(names):
        members = np.flatnonzero(source_ids == source)
        sizes = lengths[members]
        budget = round(wanted * int(sizes.sum()) / before)
        counts[members], unmet = _fill(sizes, budget, policy, key(seed, "resample", name), name)
        results.append(SourceResult(name=name, budget=budget, counts=counts[members], lengths=sizes, unmet=unmet))
    return np.repeat(np.arange(len(lengths), dtype=np.int64), counts), results


def _check(policy: LengthPolicy, total: int | None) -> None:
    if not 0 <= policy.keep_short <= 1:
        raise UserError(f"keep_short: {policy.keep_short} is no probability; give a number from 0 to 1.")
    if policy.long_above + 1 < policy.short_below:
        raise UserError(
            f"long_above: {policy.long_above} lies below short_below {policy.short_below}, so that a document "
            "could be both short and long; raise it."
        )
    if policy.max_repeats is not None and policy.max_repeats < 1:
        raise UserError(f"max_repeats: {policy.max_repeats} lists no document at all; give at least 1.")
    if total is not None and total < 1:
        raise UserError(f"total_tokens: {total} is no budget; give a positive number of tokens.")


def _fill(sizes: Ints, budget: int, policy: LengthPolicy, seed: int, name: str) -> tuple[Ints, str | None]:
    """How often each document of one source is listed, and why its budget is missed if it is."""
    counts = np.ones(len(sizes), dtype=np.int64)
    short = np.flatnonzero(sizes < policy.short_below)
    counts[shuffled(short, seed, "short")[round(policy.keep_short * len(short)) :]] = 0
    missing = budget - int(counts @ sizes)
    if missing < 0:
        kept = _that_fit(shuffled(np.flatnonzero(counts), seed, "thin"), sizes, budget)
        counts[:] = 0
        counts[kept] = 1
        return counts, None
    long = np.flatnonzero(sizes > policy.long_above)
    if not len(long):
        reason = f"has no document over {policy.long_above:,} tokens to repeat"
        return counts, f"source '{name}' lacks {missing:,} of {budget:,} tokens: it {reason}" if missing else None
    most = np.iinfo(np.int64).max if policy.max_repeats is None else policy.max_repeats
    whole_rounds = min(missing // int(sizes[long].sum()), most - 1)
    counts[long] += whole_rounds
    missing -= whole_rounds * int(sizes[long].sum())
    while missing >= int(sizes[long].min()):
        chosen = _that_fit(shuffled(long[counts[long] < most], seed, "round", missing), sizes, missing)
        if not len(chosen):
            reason = f"may list its {len(long):,} long documents {most} times at most (max_repeats)"
            return counts, f"source '{name}' lacks {missing:,} of {budget:,} tokens: it {reason}"
        counts[chosen] += 1
        missing -= int(sizes[chosen].sum())
    return counts, None


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
