"""The options of resampling, what they may be, and the share of the total that each source gets.

The policy is the paper's (arXiv 2504.06214, after Fu et al. 2024, arXiv 2402.10171): of documents under 4,096 tokens
a tenth is kept, and the tokens so lost are refilled from the source's documents over 8,192 tokens. `mix` has the
formula, `selection` the choice of documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from megatron_ultralong.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthPolicy:
    """Lengths in tokens of a document."""

    short_below: tuple[int, ...] = (4096,)
    """Documents shorter than this are thinned out; of several lengths, ascending, the first that is longer rules."""
    keep_short: tuple[float, ...] = (0.1,)
    """Share of a source's documents that stays, one for each of `short_below` (to the nearest whole document)."""
    long_above: int = 8192
    """Documents longer than this are repeated to refill their source."""
    max_repeats: int | None = None
    """Most times a document may be listed; None: as often as its source needs."""
    weights: Mapping[str, float] | None = None
    """Share of the total of each source, relative to the others'; None keeps the mix that there is."""
    longest: int | None = None
    """Documents longer than this are left out, as if the corpus had none; None: all are there."""

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        """int64 [classes - 1], ascending: the least length of each class but the first.

        The classes are the bands of short documents, those in between, and the long ones.
        """
        return np.array([*self.short_below, self.long_above + 1], dtype=np.int64)

    @property
    def classes(self) -> int:
        """How many classes of lengths there are."""
        return len(self.short_below) + 2

    def check(self) -> None:
        """Refuse what is out of its range.

        Raises:
            UserError: the first such option.
        """
        if len(self.short_below) != len(self.keep_short):
            raise UserError(
                f"keep_short: {len(self.keep_short)} shares for {len(self.short_below)} lengths of short_below; "
                "give one for each."
            )
        for share in self.keep_short:
            if not 0 <= share <= 1:
                raise UserError(f"keep_short: {share} is no probability; give a number from 0 to 1.")
        if list(self.short_below) != sorted(set(self.short_below)):
            raise UserError(f"short_below: {list(self.short_below)} do not ascend; put the shortest first.")
        if self.long_above < 0:
            raise UserError(f"long_above: {self.long_above} is no length; give 0 or more.")
        if self.long_above + 1 < max(self.short_below, default=0):
            raise UserError(
                f"long_above: {self.long_above} lies below short_below {max(self.short_below)}, so that a document "
                "could be both short and long; raise it."
            )
        if self.longest is not None and self.longest < 1:
            raise UserError(f"longest: {self.longest} leaves no document; give at least 1.")
        if self.max_repeats is not None and self.max_repeats < 1:
            raise UserError(f"max_repeats: {self.max_repeats} lists no document at all; give at least 1.")


def shares(tokens: Sequence[int], names: tuple[str, ...], weights: Mapping[str, float] | None) -> list[float]:
    """The share of the total that each source should have: that of its tokens, or of the weights.

    Raises:
        UserError: a weight is missing, out of its range, or of no source.
    """
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
