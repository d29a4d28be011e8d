import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.data.resampling.policy import LengthPolicy, _that_fit, resample
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
        assert repeats.max() - repeats.min() <= 1  # no document is favoured


@pytest.mark.parametrize("unit", [1, 5e307])
def test_weights_set_the_shares(unit):
    lengths = int64([9000] * 10 + [9000] * 30 + [100] * 50)
    sources = np.repeat([0, 1, 2], [10, 30, 50])
    policy = LengthPolicy(weights={"a": 3 * unit, "b": unit, "c": 0})
    _, results = resample(lengths, sources, ("a", "b", "c"), policy, 360_000, 1)
    assert [result.budget for result in results] == [270_000, 90_000, 0]
    assert [result.tokens for result in results] == [270_000, 90_000, 0]
    assert results[0].counts.tolist() == [3] * 10 and sorted(results[1].counts.tolist()) == [0] * 20 + [1] * 10
    assert [result.unmet for result in results] == [None] * 3


def test_several_bands_of_short_documents():
    lengths = [10] * 100 + [50] * 100 + [500] * 10 + [9000]
    policy = LengthPolicy(short_below=(20, 100), keep_short=(0.05, 0.5))
    counts = one_source(lengths, policy)[1].counts
    assert [int(counts[a:b].sum()) for a, b in ((0, 100), (100, 200), (200, 210))] == [5, 50, 10]


def test_sources_may_be_many_and_mixed():
    random = np.random.default_rng(0)
    sources = random.integers(0, 500, 5000)
    names = tuple(f"s{i}" for i in range(500))
    _, results = resample(random.integers(1, 20_000, 5000), sources, names, PAPER, None, 1)
    assert [len(result.counts) for result in results] == np.bincount(sources, minlength=500).tolist()


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 2000),
    st.one_of(st.none(), st.integers(1, 4)),
    st.integers(0, 3),
)
def test_budgets_are_met_to_within_a_document_or_named(sizes, total, most, seed):
    policy = LengthPolicy(short_below=(8,), keep_short=(0.3,), long_above=15, max_repeats=most)
    _, result = one_source(sizes, policy, total, seed)
    long = result.counts[result.lengths > 15]
    assert result.tokens <= result.budget == total
    assert not len(long) or result.missing or long.max() - long.min() <= 1
    assert most is None or result.counts.max() <= most
    assert result.counts[(result.lengths <= 15)].max(initial=0) <= 1
    if result.missing:
        assert result.missing == total - result.tokens and result.unmet is not None
        assert most is not None or not len(long)
    else:
        assert total - result.tokens < max(sizes)


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
        ({"keep_short": (1.5,)}, None, "keep_short: 1.5 is no probability"),
        ({"short_below": (100,), "long_above": 50}, None, "long_above: 50 lies below short_below 100"),
        ({"short_below": (10, 20)}, None, "keep_short: 1 shares for 2 lengths of short_below"),
        ({"short_below": (20, 10), "keep_short": (0, 0)}, None, r"short_below: \[20, 10\] do not ascend"),
        ({"short_below": (), "keep_short": (), "long_above": -1}, None, "long_above: -1 is no length"),
        ({"weights": {"books": 1}}, None, "weights: there is no source 'books'; the sources are 'web'"),
        ({"weights": {}}, None, "weights: source 'web' has none; give one for each"),
        ({"weights": {"web": 0}}, None, "weights: all are 0"),
        ({"weights": {"web": -1}}, None, "weights: -1 for source 'web' is no share"),
        ({"weights": {"web": float("nan")}}, None, "weights: nan for source 'web' is no share"),
        ({"short_below": (), "keep_short": (), "long_above": 1}, 2**40, "more than 4294967296; lower it"),
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
