"""Where tokens of a cached sequence lie, and what a chunk's queries see: written out, and against a mask."""

import itertools

import numpy as np
import pytest

from megatron_ultralong.context_parallel import stripes
from megatron_ultralong.context_parallel.stripes import Stretch


def test_every_rth_position_from_the_ranks_number_on():
    assert [stripes.count(r, 3, 7) for r in range(3)] == [3, 2, 2]  # 0 3 6 | 1 4 | 2 5
    assert [stripes.count(2, 3, length) for length in range(4)] == [0, 0, 0, 1]
    assert [stripes.first(r, 3, 4) for r in range(3)] == [6, 4, 5]


def test_shares_of_a_chunk_that_nothing_divides():
    stretch = Stretch(start=4, tokens=7, stripes=2)  # 4 6 8 10 | 5 7 9
    assert [list(stretch.share(r, 0, 1)) for r in (0, 1)] == [[4, 6, 8, 10], [5, 7, 9, 11]]
    assert [list(stretch.share(0, i, 2)) for i in (0, 1)] == [[4, 6], [8, 10]]
    assert [list(stretch.share(1, i, 2)) for i in (0, 1)] == [[5, 7], [9, 11]]  # 11 is padding


@pytest.mark.parametrize("ring", [1, 2, 3, 5])
@pytest.mark.parametrize("ulysses", [1, 2])
def test_shares_are_the_chunk_once_and_squares_are_its_causal_mask(ring, ulysses):
    for start, tokens in itertools.product(range(7), range(1, 13)):
        stretch = Stretch(start, tokens, ring)
        shares = [list(stretch.share(r, i, ulysses)) for r in range(ring) for i in range(ulysses)]
        assert sorted(p for share in shares for p in share if p < stretch.stop) == list(range(start, stretch.stop))
        assert {len(share) for share in shares} == {stretch.share_length(ulysses)}
        held = [[p for p in range(start, stretch.stop) if p % ring == r] for r in range(ring)]
        assert [len(h) for h in held] == [stretch.rows(r) for r in range(ring)]
        for queries, keys in itertools.product(range(ring), range(ring)):
            skipped, side = stretch.square(queries, keys)
            seen = np.zeros((len(held[queries]), len(held[keys])), dtype=bool)
            seen[skipped : skipped + side, :side] = np.tri(side, dtype=bool)
            expected = np.array([[k <= q for k in held[keys]] for q in held[queries]], dtype=bool)
            assert np.array_equal(seen, expected.reshape(seen.shape)), (stretch, queries, keys)
