import pytest

from megatron_ultralong.data.resampling.policy import LengthPolicy, shares
from megatron_ultralong.errors import UserError


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ({"keep_short": (1.5,)}, "keep_short: 1.5 is no probability"),
        ({"short_below": (100,), "long_above": 50}, "long_above: 50 lies below short_below 100"),
        ({"short_below": (10, 20)}, "keep_short: 1 shares for 2 lengths of short_below"),
        ({"short_below": (20, 10), "keep_short": (0, 0)}, r"short_below: \[20, 10\] do not ascend"),
        ({"short_below": (), "keep_short": (), "long_above": -1}, "long_above: -1 is no length"),
        ({"max_repeats": 0}, "max_repeats: 0 lists no document"),
    ],
)
def test_options_out_of_range(policy, sentence):
    with pytest.raises(UserError, match=sentence):
        LengthPolicy(**policy).check()


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"books": 1}, "weights: there is no source 'books'; the sources are 'web'"),
        ({}, "weights: source 'web' has none; give one for each"),
        ({"web": 0}, "weights: all are 0"),
        ({"web": -1}, "weights: -1 for source 'web' is no share"),
        ({"web": float("nan")}, "weights: nan for source 'web' is no share"),
    ],
)
def test_weights_out_of_range(weights, sentence):
    with pytest.raises(UserError, match=sentence):
        shares([10], ("web",), weights)


def test_shares_are_the_tokens_or_the_weights():
    assert shares([30, 10], ("a", "b"), None) == [0.75, 0.25]
    for unit in (1, 5e307):
        assert shares([30, 10, 5], ("a", "b", "c"), {"a": unit, "b": 3 * unit, "c": 0}) == [0.25, 0.75, 0]
