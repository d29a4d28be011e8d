"""The zig-zag layout against literal lists and against a mask drawn element by element."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.errors import UserError


def test_chunks_pair_an_early_with_a_late_one():
    assert zigzag.chunks(0, 1) == (0,)
    assert [zigzag.chunks(rank, 4) for rank in range(4)] == [(0, 7), (1, 6), (2, 5), (3, 4)]


def test_spans_of_sixteen_positions_on_two_ranks():
    assert zigzag.spans(16, 0, 2) == ((0, 4), (12, 16))
    assert zigzag.spans(16, 1, 2) == ((4, 8), (8, 12))
    assert zigzag.spans(7, 0, 1) == ((0, 7),)


def test_an_indivisible_length_is_refused():
    with pytest.raises(UserError, match=r"data.sequence_length 18 is not divisible by 2 x parallel.context = 4"):
        zigzag.spans(18, 0, 2)


def test_full_causal_blocks_of_two_ranks():
    assert zigzag.blocks(16, 0, 1, 2, None) == [
        zigzag.Block(4, 8, 0, 4, causal=False),
        zigzag.Block(4, 8, 4, 8, causal=False),
    ]
    assert zigzag.blocks(16, 1, 0, 2, None) == [
        zigzag.Block(0, 4, 0, 4, causal=False),
        zigzag.Block(4, 8, 0, 4, causal=False),
    ]


@st.composite
def packed_sequences(draw):
    cp_size = draw(st.integers(1, 4))
    length = 2 * cp_size * draw(st.integers(1, 6))
    cuts = draw(st.sets(st.integers(1, length - 1), max_size=8)) if length > 1 else set()
    return cp_size, length, (0, *sorted(cuts), length)


@given(packed_sequences())
def test_blocks_cover_the_mask_once(case):
    """Every pair that causal, document-masked attention allows is in just one block, and no other pair is."""
    cp_size, length, bounds = case
    document = np.searchsorted(bounds, np.arange(length), side="right")
    wanted = np.tril(document[:, None] == document[None, :]).astype(int)
    seen = np.zeros((length, length), dtype=int)
    held = [
        np.concatenate([np.arange(*span) for span in zigzag.spans(length, rank, cp_size)]) for rank in range(cp_size)
    ]
    for q_rank in range(cp_size):
        for k_rank in range(cp_size):
            for block in zigzag.blocks(length, q_rank, k_rank, cp_size, bounds):
                rows = held[q_rank][block.q_start : block.q_stop]
                keys = held[k_rank][block.k_start : block.k_stop]
                ones = np.ones((len(rows), len(keys)), dtype=int)
                seen[np.ix_(rows, keys)] += np.tril(ones) if block.causal else ones
    np.testing.assert_array_equal(seen, wanted)
