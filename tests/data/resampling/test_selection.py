import hashlib
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.data.resampling import selection
from megatron_ultralong.data.resampling.mix import mix
from megatron_ultralong.data.resampling.policy import LengthPolicy
from megatron_ultralong.data.resampling.selection import _that_fit, select
from megatron_ultralong.errors import UserError

PAPER = LengthPolicy()
BANDS = LengthPolicy(short_below=(8, 30), keep_short=(0.1, 0.5), long_above=100)


def int64(values):
    return np.array(values, dtype=np.int64)


def ids_of(chosen):
    pieces = list(chosen.ids())
    return np.concatenate(pieces).tolist() if pieces else []


def one_source(lengths, policy=PAPER, total=None, seed=0):
    """The selection, and how often each document is listed."""
    chosen = select(int64(lengths), np.zeros(len(lengths), dtype=np.int64), ("web",), policy, total, seed)
    return chosen, chosen.counts(0, len(lengths))


def some_lengths(count, seed=0, deviation=1.2):
    return np.maximum(np.random.default_rng(seed).lognormal(3, deviation, count), 1).astype(np.int64)


def tokens(chosen, source=0):
    return int((chosen.rounds * chosen.tokens + chosen.chosen_tokens)[source].sum())


def test_the_papers_policy():
    # 100 short documents become 10; 4096 and 8192 stay once; the 90 x 1000 tokens lost are 9 x 10000 of long ones.
    lengths = [1000] * 100 + [4096, 8192] + [10_000] * 3
    chosen, counts = one_source(lengths)
    assert int(counts[:100].sum()) == 10 and counts[:100].max() == 1
    assert counts[100:].tolist() == [1, 1, 4, 4, 4]
    assert tokens(chosen) == chosen.budgets[0] == sum(lengths) and chosen.reasons == [""]
    ids = ids_of(chosen)
    assert ids == sorted(ids) and ids[-4:] == [104] * 4 and len(ids) == chosen.listed


def test_each_source_keeps_its_share():
    random = np.random.default_rng(0)
    sources = random.integers(0, 3, 3000)
    lengths = np.where(random.random(3000) < 0.8, random.integers(10, 4096, 3000), random.integers(8193, 20000, 3000))
    chosen = select(lengths, sources, ("a", "b", "c"), PAPER, 10_000_000, 1)
    for source in range(3):
        assert chosen.budgets[source] == round(10_000_000 * (lengths[sources == source].sum() / lengths.sum()))
        assert 0 <= chosen.budgets[source] - tokens(chosen, source) < 20_000 and not chosen.reasons[source]


def test_weights_set_the_shares():
    lengths = int64([9000] * 10 + [9000] * 30 + [100] * 50)
    sources = np.repeat([0, 1, 2], [10, 30, 50])
    chosen = select(lengths, sources, ("a", "b", "c"), LengthPolicy(weights={"a": 3, "b": 1, "c": 0}), 360_000, 1)
    assert chosen.budgets == [tokens(chosen, source) for source in range(3)] == [270_000, 90_000, 0]
    counts = chosen.counts(0, 90)
    assert counts[:10].tolist() == [3] * 10 and sorted(counts[10:40].tolist()) == [0] * 20 + [1] * 10
    assert chosen.reasons == [""] * 3


def test_several_bands_of_short_documents():
    lengths = [10] * 100 + [50] * 100 + [500] * 10 + [9000]
    counts = one_source(lengths, LengthPolicy(short_below=(20, 100), keep_short=(0.05, 0.5)))[1]
    assert [int(counts[a:b].sum()) for a, b in ((0, 100), (100, 200), (200, 210))] == [5, 50, 10]


@pytest.mark.parametrize("block", [7, 1000])
def test_blocks_sources_and_kinds_of_numbers_do_not_matter(monkeypatch, block):
    random = np.random.default_rng(0)
    sources, lengths = random.integers(0, 500, 5000), some_lengths(5000)
    names = tuple(f"s{i}" for i in range(500))
    expected = select(lengths, sources, names, BANDS, 40_000, 1)
    monkeypatch.setattr(selection, "BLOCK", block)
    chosen = select(lengths.astype(np.int32), sources.astype(np.int32), names, BANDS, 40_000, 1)
    assert ids_of(chosen) == np.repeat(np.arange(5000), expected.counts(0, 5000)).tolist()
    for name in ("documents", "tokens", "rounds", "chosen", "chosen_documents", "chosen_tokens"):
        assert np.array_equal(getattr(chosen, name), getattr(expected, name)), name
    assert chosen.documents.sum(axis=1).tolist() == np.bincount(sources, minlength=500).tolist()


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(SIZES, st.integers(1, 2000), st.one_of(st.none(), st.integers(1, 4)), st.integers(0, 3))
def test_budgets_are_met_to_within_a_document_or_named(sizes, total, most, seed):
    policy = LengthPolicy(short_below=(8,), keep_short=(0.3,), long_above=15, max_repeats=most)
    chosen, counts = one_source(sizes, policy, total, seed)
    lengths = int64(sizes)
    assert int(counts @ lengths) == tokens(chosen) <= chosen.budgets[0] == total
    for inside in (lengths < 8, (lengths >= 8) & (lengths <= 15), lengths > 15):
        if inside.any():
            assert counts[inside].max() - counts[inside].min() <= 1  # no document is favoured
    assert most is None or counts.max() <= most
    if chosen.missing[0]:
        assert chosen.missing[0] == total - tokens(chosen) and chosen.reasons[0]
        assert most is not None or not (lengths > 15).any()
    elif most is None:
        assert total - tokens(chosen) < max(sizes)


@settings(max_examples=60, deadline=None)
@given(st.integers(200, 200_000), st.integers(0, 10**6), st.booleans())
def test_any_budget_lists_the_classes_of_the_mix(total, seed, long):
    """Of each class what `mix` says, but for the error of a sample without replacement and a document at the end.

    A sum of m such values from 0 to b is further than b sqrt(m log(2 / p) / 2) from its mean with probability p at most
    (Hoeffding 1963, theorem 4). The class that fills the budget is off by what the others are, and by a document.
    """
    lengths = some_lengths(2000, seed % 5)
    lengths = lengths if long else np.minimum(lengths, 100)
    chosen, counts = one_source(lengths, BANDS, total, seed)
    recipe = mix(chosen.documents[0].tolist(), chosen.tokens[0].tolist(), total, BANDS)
    classes = np.searchsorted(BANDS.bounds, lengths, side="right")
    allowed = 0.0
    for number, rate in enumerate(recipe.rates):
        own, listed = lengths[classes == number], counts[classes == number]
        if not len(own):
            continue
        assert listed.max() - listed.min() <= 1
        chances = int((listed > listed.min()).sum())
        if not recipe.met or number < max(n for n, rate in enumerate(recipe.rates) if rate):
            assert abs(int(listed.sum()) - rate * len(own)) < 1
            error = own.max() * (1 + math.sqrt(chances * math.log(2e9) / 2))
            allowed += error
        else:
            error = allowed + lengths.max()
        assert abs(int(listed @ own) - float(rate) * int(own.sum())) <= error


@pytest.mark.parametrize("share", [0.02, 0.2, 0.7, 1, 3.3])
def test_the_mean_share_of_every_length_is_that_of_the_natural_size(share):
    """Over 200 seeds, in every power of two, to five standard errors and the document that the end may lack."""
    lengths = np.minimum(some_lengths(20_000, 3, 1.5), 600)
    total = int(lengths.sum())
    natural = one_source(lengths, BANDS)[0]
    recipe = mix(natural.documents[0].tolist(), natural.tokens[0].tolist(), total, BANDS)
    powers = np.frexp(lengths)[1]
    rates = np.array([float(rate) for rate in recipe.rates])[np.searchsorted(BANDS.bounds, lengths, side="right")]
    expected = np.bincount(powers, weights=rates * lengths) / total
    budget = round(share * total)
    found = np.array(
        [
            np.bincount(powers, weights=one_source(lengths, BANDS, budget, seed)[1] * lengths) / budget
            for seed in range(200)
        ]
    )
    errors = found.std(axis=0) / math.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - expected) <= 5 * errors + lengths.max() / budget).all()
    assert lengths.max() / budget < 0.03 and expected[7:].sum() > 0.8  # which says something of the long ones


def test_a_small_budget_has_as_many_long_tokens_as_a_large_one():
    """The flagship's case: 1 % of the corpus, where the long were once listed as often as those in between."""
    lengths = [1000] * 4000 + [6000] * 500 + [20_000] * 300
    total = sum(lengths)
    for budget in (total // 10, total // 2, total, 3 * total):
        counts = one_source(lengths, PAPER, budget)[1]
        assert abs(int(counts[4500:].sum()) * 20_000 / budget - (total - 3_400_000) / total) < 20_000 / budget + 0.001


def test_the_same_seed_gives_the_same_list():
    lengths = [100 + i for i in range(200)] + [9000 + i for i in range(20)]
    for total in (None, 20_000, 2_000_000):
        first, second, other = (ids_of(one_source(lengths, total=total, seed=seed)[0]) for seed in (1, 1, 2))
        assert first == second != other


def test_the_list_at_natural_size_is_what_it_ever_was():
    lengths = int64([(i * 7919) % 20_000 + 1 for i in range(3000)])
    ids = ids_of(select(lengths, np.arange(3000) % 3, ("a", "b", "c"), PAPER, None, 1234))
    digest = hashlib.sha256(np.array(ids, dtype="<i8").tobytes()).hexdigest()
    assert (len(ids), digest[:16]) == (2528, "220a865d6c2d8552")


def test_a_total_below_what_is_kept_thins_further():
    chosen, counts = one_source([5000] * 10, total=22_000)
    assert sorted(counts.tolist()) == [0] * 6 + [1] * 4 and chosen.reasons == [""]


@pytest.mark.parametrize(
    ("lengths", "policy", "total", "missing", "reason"),
    [
        ([100] * 10 + [5000], PAPER, None, 900, "has no document over 8,192 tokens to repeat"),
        ([100] * 10 + [5000], PAPER, 12_000, 1_800, "has no document over 8,192 tokens to repeat"),
        ([100] * 10, LengthPolicy(keep_short=(0,)), 50, 50, "has no document over 8,192 tokens to repeat"),
        (
            [1000] * 100 + [10_000],
            LengthPolicy(max_repeats=3),
            None,
            70_000,
            "may list its 1 long documents 3 times at most (max_repeats)",
        ),
    ],
)
def test_an_impossible_budget_is_named(lengths, policy, total, missing, reason):
    chosen = one_source(lengths, policy, total)[0]
    assert (chosen.missing, chosen.reasons) == ([missing], [reason])


@pytest.mark.parametrize(
    ("policy", "total", "sentence"),
    [
        (LengthPolicy(keep_short=(1.5,)), None, "keep_short: 1.5 is no probability"),
        (LengthPolicy(weights={"books": 1}), None, "weights: there is no source 'books'"),
        (LengthPolicy(short_below=(), keep_short=(), long_above=1), 2**40, "more than 4294967296; lower it"),
        (PAPER, 0, "total_tokens: 0 is no budget"),
    ],
)
def test_options_out_of_range(policy, total, sentence):
    with pytest.raises(UserError, match=sentence):
        one_source([10], policy, total)


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(0, 120))
def test_that_fit_is_the_plain_loop(sizes, budget):
    expected, left = [], budget
    for place, size in enumerate(sizes):
        if size <= left:
            expected.append(place)
            left -= size
    assert _that_fit(int64(sizes), budget).tolist() == expected


@pytest.mark.parametrize("policy", [PAPER, LengthPolicy(short_below=(), keep_short=(), long_above=0)])
def test_memory_is_under_20_bytes_a_document(monkeypatch, policy):
    monkeypatch.setattr(selection, "BLOCK", 1 << 12)
    lengths, sources = np.full(500_000, 100, dtype=np.int32), np.zeros(500_000, dtype=np.int32)
    lengths[::50] = 10_000
    tracemalloc.start()
    chosen = select(lengths, sources, ("web",), policy, 100_000_000, 0)
    assert sum(map(len, chosen.ids())) == chosen.listed > 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 5 < peak / len(lengths) < 15
