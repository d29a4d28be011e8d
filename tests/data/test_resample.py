import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.data.resample import LengthPolicy, _that_fit, resample
from megatron_ultralong.errors import UserError

PAPER = LengthPolicy()


def int64(values):
    return np.array(values, dtype=np.int64)


def one_source(lengths, policy=PAPER, total=None, seed=0):
    lengths = int64(lengths)
    ids, (result,) = resample(lengths, np.zeros(len(lengths), dtype=np.int64), ("web",), policy, total, seed)
    return ids.tolist(), result


def test_the_papers_policy():
    # 100 short documents become 10; 4096 and 8192 stay once; the 90 x 1000 tokens lost are 9 x 10000 of long ones.
    lengths = [1000] * 100 + [4096, 8192] + [10_000] * 3
    ids, result = one_source(lengths)
    counts = result.counts.tolist()
    assert sum(counts[:100]) == 10 and max(counts[:100]) == 1
    assert counts[100:102] == [1, 1] and counts[102:] == [4, 4, 4]
    assert result.tokens == result.budget == sum(lengths) and result.unmet is None
    assert ids == sorted(ids) and ids[-4:] == [104] * 4


def test_each_source_keeps_its_share():
    random = np.random.default_rng(0)
    sources = random.integers(0, 3, 3000)
    lengths = np.where(random.random(3000) < 0.8, random.integers(10, 4096, 3000), random.integers(8193, 20000, 3000))
    _, results = resample(lengths, sources, ("a", "b", "c"), PAPER, 10_000_000, 1)
    for source, result in enumerate(results):
        share = lengths[sources == source].sum() / lengths.sum()
        assert result.budget == round(10_000_000 * share)
        assert 0 <= result.budget - result.tokens < 20_000 and result.unmet is None
        repeats = result.counts[result.lengths > 8192]
        assert repeats.max() - repeats.min() <= 2  # no document is favoured


def test_the_same_seed_gives_the_same_list():
    lengths = [100 + i for i in range(200)] + [9000 + i for i in range(20)]
    first, second, other = (one_source(lengths, seed=seed)[0] for seed in (1, 1, 2))
    assert first == second != other


def test_a_total_below_what_is_kept_thins_further():
    _, result = one_source([5000] * 10, total=22_000)
    assert sorted(result.counts.tolist()) == [0] * 6 + [1] * 4 and result.unmet is None


@pytest.mark.parametrize(
    ("lengths", "policy", "sentence"),
    [
        (
            [100] * 10 + [5000],
            PAPER,
            "source 'web' lacks 900 of 6,000 tokens: it has no document over 8,192 tokens to repeat",
        ),
        (
            [1000] * 100 + [10_000],
            LengthPolicy(max_repeats=3),
            "source 'web' lacks 70,000 of 110,000 tokens: it may list its 1 long documents 3 times at most "
            "(max_repeats)",
        ),
    ],
)
def test_an_impossible_budget_is_named(lengths, policy, sentence):
    assert one_source(lengths, policy)[1].unmet == sentence


@pytest.mark.parametrize(
    ("policy", "total", "sentence"),
    [
        ({"keep_short": 1.5}, None, "keep_short: 1.5 is no probability"),
        ({"short_below": 100, "long_above": 50}, None, "long_above: 50 lies below short_below 100"),
        ({"max_repeats": 0}, None, "max_repeats: 0 lists no document"),
        ({}, 0, "total_tokens: 0 is no budget"),
    ],
)
def test_options_out_of_range(policy, total, sentence):
    with pytest.raises(UserError, match=sentence):
        one_source([10], LengthPolicy(**policy), total)


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(0, 120))
def test_that_fit_is_the_plain_loop(sizes, budget):
    order = np.arange(len(sizes), dtype=np.int64)[::-1]
    expected, left = [], budget
    for document in order.tolist():
        if sizes[document] <= left:
            expected.append(document)
            left -= sizes[document]
    assert _that_fit(order, int64(sizes), budget).tolist() == expected
