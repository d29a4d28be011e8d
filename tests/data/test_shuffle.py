import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.data.packing import _packing, specification
from megatron_ultralong.data.shuffle import key, shuffled


def test_the_shuffle_is_fixed_for_ever():
    assert _packing.permutation(8, 1234).tolist() == [6, 0, 3, 2, 7, 1, 4, 5]
    tens = np.arange(10, dtype=np.int64) * 10
    assert shuffled(tens, 7, "documents").tolist() == [30, 60, 90, 80, 40, 50, 70, 0, 10, 20]


@given(st.integers(0, 300), st.integers(0, 2**64 - 1))
def test_the_shuffle_equals_its_specification_and_loses_nothing(count, seed):
    fast = _packing.permutation(count, seed)
    assert fast.tolist() == specification.permutation(count, seed).tolist()
    assert sorted(fast.tolist()) == list(range(count))


def test_a_shuffle_in_blocks_equals_its_specification():
    count = 2 * 65536 + 77  # three blocks
    fast = _packing.permutation(count, 99)
    assert np.array_equal(fast, specification.permutation(count, 99))
    assert np.array_equal(np.sort(fast), np.arange(count))
    # Where a number comes to lie says nothing of the number: the correlation's standard deviation is 1 / 362.
    assert abs(np.corrcoef(fast, np.arange(count))[0, 1]) < 0.015


def test_every_order_of_three_is_as_likely():
    orders = [tuple(_packing.permutation(3, key(0, i)).tolist()) for i in range(6000)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6 and all(850 < count < 1150 for count in counts)  # 5 standard deviations are 144


def test_keys_differ_by_use():
    assert len({key(1, "a"), key(1, "b"), key(2, "a"), key(1, "a", 0), key(1)}) == 5


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=5),
    st.integers(0, 60),
)
def test_the_blend_equals_its_specification(weights, count):
    weights = [weight / sum(weights) for weight in weights]
    drawn = [i for i in range(len(weights))]
    choices, after = _packing.blend(weights, drawn, count)
    slow, slow_after = specification.blend(weights, drawn, count)
    assert choices.tolist() == slow.tolist() and after == slow_after


def test_the_blend_by_hand():
    assert _packing.blend([0.5, 0.25, 0.25], [0, 0, 0], 8)[0].tolist() == [0, 1, 2, 0, 0, 1, 2, 0]


def test_the_blend_refuses_what_does_not_match():
    with pytest.raises(ValueError, match="blend"):
        _packing.blend([0.5, 0.5], [0], 3)
