"""Which positions of a cached sequence a rank holds, and what of a chunk its keys are seen by.

Position p lies on rank p mod R: every R-th token from the rank's own number on, in order. So a sequence of any length,
cut off anywhere and continued by chunks of any size or by single tokens, lies evenly to within one token, and where a
token lies follows from its position alone: nothing is kept of how the sequence came to be. (The zig-zag cut of
training needs the whole length beforehand.) And the work is even: of a chunk's queries, those at j, j + R, ... see
among a rank's keys one causal square, less its diagonal where the keys' rank comes after the queries'.
Pure arithmetic over R, start and tokens; a stripe is a rank's number in the ring.
"""

from __future__ import annotations

import dataclasses


def count(stripe: int, stripes: int, length: int) -> int:
    """Positions below `length` that lie on a stripe."""
    return max(0, -(-(length - stripe) // stripes))


def first(stripe: int, stripes: int, start: int) -> int:
    """The first position of a stripe that is not before `start`."""
    return start + (stripe - start) % stripes


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A chunk of a sequence whose tokens before `start` are cached.

    Attributes:
        start: position of its first token.
        tokens: how many.
        stripes: R.
    """

    start: int
    tokens: int
    stripes: int

    @property
    def stop(self) -> int:
        """Behind its last position."""
        return self.start + self.tokens

    def rows(self, stripe: int) -> int:
        """Its tokens on a stripe."""
        return self.before(stripe, self.stop) - self.before(stripe)

    def before(self, stripe: int, position: int | None = None) -> int:
        """Tokens of a stripe before the chunk, or before `position`."""
        return count(stripe, self.stripes, self.start if position is None else position)

    def square(self, queries: int, keys: int) -> tuple[int, int]:
        """What the chunk's queries on one stripe see of its keys on another.

        Returns:
            s and n: query rows s .. s + n - 1 against keys 0 .. n - 1, row s + i seeing keys up to i.
        """
        later = first(keys, self.stripes, self.start) > first(queries, self.stripes, self.start)
        return int(later), max(0, self.rows(queries) - later)

    def share_length(self, ulysses: int) -> int:
        """Tokens that each rank computes: a stripe's are shared out in order to `ulysses` ranks, and padded."""
        longest = -(-self.tokens // self.stripes)
        return -(-longest // ulysses)

    def share(self, stripe: int, place: int, ulysses: int) -> range:
        """Positions that rank `place` of a stripe's `ulysses` ranks computes; those from `stop` on are padding."""
        length = self.share_length(ulysses)
        begin = first(stripe, self.stripes, self.start) + place * length * self.stripes
        return range(begin, begin + length * self.stripes, self.stripes)
