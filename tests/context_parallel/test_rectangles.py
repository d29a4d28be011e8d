"""The plan of a ring against literal lists, and against a mask drawn element by element."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.context_parallel import rectangles, zigzag
from megatron_ultralong.context_parallel.rectangles import Block, LocalDocument
from megatron_ultralong.errors import UserError


def test_a_document_over_both_chunks_is_one_piece():
    # 16 positions on 2 ranks: rank 0 holds 0..3 and 12..15, rank 1 holds 4..11.
    assert rectangles.local_documents(16, 0, 2, (0, 3, 13, 16)) == [
        LocalDocument(0, 0, 3),
        LocalDocument(1, 3, 5),
        LocalDocument(2, 5, 8),
    ]
    assert rectangles.local_documents(16, 1, 2, (0, 3, 13, 16)) == [LocalDocument(1, 0, 8)]
    assert rectangles.local_documents(16, 0, 2, (0, 4, 12, 16)) == [LocalDocument(0, 0, 4), LocalDocument(2, 4, 8)]


def test_full_causal_blocks_of_two_ranks():
    assert rectangles.blocks(16, 0, 0, 2, None) == [Block(0, 8, 0, 8, causal=True)]
    assert rectangles.blocks(16, 0, 1, 2, None) == [Block(4, 8, 0, 8, causal=False)]  # late rows, all their keys
    assert rectangles.blocks(16, 1, 0, 2, None) == [Block(0, 8, 0, 4, causal=False)]  # all rows, their early keys


def test_a_document_that_ends_on_a_chunk_border_needs_nothing_from_others():
    bounds = (0, 4, 8, 12, 16)
    assert rectangles.blocks(16, 0, 1, 2, bounds) == rectangles.blocks(16, 1, 0, 2, bounds) == []
    plan = rectangles.plan(16, 0, 2, bounds, True)
    assert not plan.keys_travel and not plan.gradients_travel


def test_gradients_go_home_by_way_of_ranks_that_saw_no_keys():
    # On 3 ranks of chunks of 6, the document 24..36 is in rank 1's late chunk and goes on in rank 0's.
    plans = [rectangles.plan(36, rank, 3, (0, 6, 12, 24, 36), True) for rank in range(3)]
    assert [plan.keys_travel for plan in plans] == [True, True, False]
    assert [plan.gradients_travel for plan in plans] == [True, True, True]


def test_only_rows_that_someone_needs_travel():
    # 3..5 goes from early chunk 0 into chunk 1, 11..13 from late chunk 2 into chunk 3.
    bounds = (0, 3, 5, 11, 13, 16)
    first, second = (rectangles.plan(16, rank, 2, bounds, True) for rank in (0, 1))
    assert first.documents == (0, 3, 4, 5, 8) and second.documents == (0, 1, 7, 8)
    assert first.steps[0].keys_out == second.steps[0].keys_in == ((3, 4),)
    assert first.steps[0].keys_in == second.steps[0].keys_out == ((7, 8),)
    assert first.steps[1].blocks == (Block(4, 5, 7, 8, causal=False),)
    assert second.steps[1].blocks == (Block(0, 1, 3, 4, causal=False),)
    assert first.steps[1].gradients_in == ((3, 4),) and second.steps[1].gradients_out == ((3, 4),)


def test_the_share_of_the_first_rank_sends_its_late_chunk_to_nobody():
    assert rectangles.plan(32, 0, 4, None, True).steps[0].keys_out == ((0, 4),)
    assert rectangles.plan(32, 3, 4, None, True).steps[0].keys_out == ((0, 8),)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((0, 8), "must go from 0 to the sequence's 16 tokens, and are 0 .. 8"),
        ((2, 16), "are 2 .. 16"),
        ((), "are none"),
        ((0, 9, 5, 16), "must not fall, and 9 is followed by 5"),
    ],
)
def test_bad_bounds_are_refused(bounds, said):
    with pytest.raises(UserError, match=said):
        rectangles.plan(16, 0, 2, bounds, True)


def test_empty_documents_are_left_out():
    assert zigzag.document_bounds((0, 0, 5, 5, 8, 8), 8) == (0, 5, 8)


@st.composite
def packed_sequences(draw):
    cp_size = draw(st.integers(1, 5))
    length = 2 * cp_size * draw(st.integers(1, 6))
    cuts = draw(st.sets(st.integers(1, length - 1), max_size=8))
    return cp_size, length, (0, *sorted(cuts), length), draw(st.booleans())


def held_by(length, rank, cp_size):
    return np.concatenate([np.arange(*span) for span in zigzag.spans(length, rank, cp_size)])


@given(packed_sequences())
def test_blocks_cover_the_mask_once(case):
    """Every pair that attention allows is in just one block, and no other pair is."""
    cp_size, length, bounds, causal = case
    document = np.searchsorted(bounds, np.arange(length), side="right")
    wanted = (document[:, None] == document[None, :]).astype(int)
    wanted = np.tril(wanted) if causal else wanted
    seen = np.zeros((length, length), dtype=int)
    held = [held_by(length, rank, cp_size) for rank in range(cp_size)]
    for q_rank in range(cp_size):
        for k_rank in range(cp_size):
            found = rectangles.blocks(length, q_rank, k_rank, cp_size, bounds, causal)
            assert q_rank == k_rank or not causal or len(found) <= 1
            for block in found:
                rows, keys = held[q_rank][block.rows], held[k_rank][block.keys]
                ones = np.ones((len(rows), len(keys)), dtype=int)
                seen[np.ix_(rows, keys)] += np.tril(ones) if block.causal else ones
    np.testing.assert_array_equal(seen, wanted)


@given(packed_sequences())
def test_rows_are_where_a_step_needs_them_and_gradients_come_home(case):
    """Plays the plans of all ranks with labels for rows: what a step reads has arrived, what it adds comes home."""
    cp_size, length, bounds, causal = case
    plans = [rectangles.plan(length, rank, cp_size, bounds, causal) for rank in range(cp_size)]
    rows = length // cp_size
    at_hand = [set(range(rows)) for _ in plans]  # rows of the share that a rank works with
    sums = [np.full(rows, np.nan) for _ in plans]  # gradients that travel with it; NaN: never set
    added = np.zeros((cp_size, rows))
    for step in range(cp_size):
        for rank, plan in enumerate(plans):
            now = plan.steps[step]
            for start, stop in now.fresh:
                sums[rank][start:stop] = 0
            for block in now.blocks:
                assert set(range(block.k_start, block.k_stop)) <= at_hand[rank]
                sums[rank][block.keys] += 1
                added[(rank + step) % cp_size][block.keys] += 1
        at_hand, sums = moved(plans, step, at_hand, sums, rows)
    np.testing.assert_array_equal(np.nan_to_num(sums), added)


def moved(plans, step, at_hand, sums, rows):
    """What each rank has after it received from the next."""
    new_rows, new_sums = [], []
    for rank, plan in enumerate(plans):
        source = (rank + 1) % len(plans)
        assert plan.steps[step].keys_in == plans[source].steps[step].keys_out
        assert plan.steps[step].gradients_in == plans[source].steps[step].gradients_out
        arrived = {row for span in plan.steps[step].keys_in for row in range(*span)}
        assert arrived <= at_hand[source]
        received = np.full(rows, np.nan)
        for start, stop in plan.steps[step].gradients_in:
            received[start:stop] = sums[source][start:stop]
        new_rows.append(arrived)
        new_sums.append(received)
    return new_rows, new_sums
