"""The zig-zag layout against literal lists, and shard against unshard."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.context_parallel import zigzag
from megatron_ultralong.errors import UserError


def test_chunks_pair_an_early_with_a_late_one():
    assert zigzag.chunks(0, 1) == (0,)
    assert [zigzag.chunks(rank, 4) for rank in range(4)] == [(0, 7), (1, 6), (2, 5), (3, 4)]
    with pytest.raises(ValueError, match="rank 4 is not one of 4"):
        zigzag.chunks(4, 4)


def test_spans_of_sixteen_positions_on_two_ranks():
    assert zigzag.spans(16, 0, 2) == ((0, 4), (12, 16))
    assert zigzag.spans(16, 1, 2) == ((4, 8), (8, 12))
    assert zigzag.spans(7, 0, 1) == ((0, 7),)


def test_an_indivisible_length_is_refused():
    with pytest.raises(UserError, match=r"data.sequence_length 18 .* 2 x parallel.context = 4; .*: 20\.$"):
        zigzag.spans(18, 0, 2)
    with pytest.raises(UserError, match="not divisible"):
        zigzag.shard(torch.zeros(1, 18), 0, 2)


def test_shards_of_a_batch_and_of_sequence_first_tensors():
    tokens = torch.arange(16).reshape(1, 16)
    assert zigzag.shard(tokens, 0, 2).tolist() == [[0, 1, 2, 3, 12, 13, 14, 15]]
    assert zigzag.shard(tokens, 1, 2).tolist() == [[4, 5, 6, 7, 8, 9, 10, 11]]
    sequence_first = tokens.T.reshape(16, 1, 1).expand(16, 2, 3)
    assert zigzag.shard(sequence_first, 0, 2, dim=0)[:, 1, 2].tolist() == [0, 1, 2, 3, 12, 13, 14, 15]


def test_padding_by_choice_ends_the_sequence_with_rows_that_do_not_count():
    loss_mask = torch.ones(2, 6)
    shares = [zigzag.shard(loss_mask, rank, 2, pad=0) for rank in range(2)]
    assert [share[0].tolist() for share in shares] == [[1, 1, 0, 0], [1, 1, 1, 1]]
    torch.testing.assert_close(zigzag.unshard(shares, length=6), loss_mask)
    assert torch.equal(zigzag.shard(loss_mask, 0, 2, dim=-1, pad=0), shares[0])
    assert (zigzag.padded_length(6, 2), zigzag.padded_length(8, 2), zigzag.padded_length(6, 1)) == (8, 8, 6)


def test_shares_that_are_not_of_one_sequence_are_refused():
    with pytest.raises(ValueError, match=r"shares of \[4, 6\] positions"):
        zigzag.unshard([torch.zeros(1, 4), torch.zeros(1, 6)])
    with pytest.raises(ValueError, match=r"shares of \[3\] positions"):
        zigzag.unshard([torch.zeros(1, 3), torch.zeros(1, 3)])


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 1), st.integers(0, 17))
def test_unshard_undoes_shard(cp_size, chunk, dim, missing):
    length = max((1 if cp_size == 1 else 2 * cp_size) * chunk - missing % (2 * cp_size), 1)
    whole = torch.arange(6 * length).reshape((length, 2, 3) if dim == 0 else (2, length, 3))
    shares = [zigzag.shard(whole, rank, cp_size, dim=dim, pad=0) for rank in range(cp_size)]
    assert torch.equal(zigzag.unshard(shares, dim=dim, length=length), whole)
