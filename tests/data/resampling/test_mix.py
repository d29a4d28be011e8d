from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ultralong.data.resampling.mix import mix
from megatron_ultralong.data.resampling.policy import LengthPolicy

PAPER = LengthPolicy()


def rates(documents, tokens, budget, policy=PAPER):
    return [str(rate) for rate in mix(documents, tokens, budget, policy).rates]


def test_the_papers_recipe_and_its_scale():
    # 100 documents of 1,000 become 10; the 90,000 tokens lost are refilled from 30,000 long ones: 1 + 3 times each.
    documents, tokens = [100, 2, 3], [100_000, 12_288, 30_000]
    assert rates(documents, tokens, 142_288) == ["1/10", "1", "4"]
    assert rates(documents, tokens, 14_229) == [
        str(Fraction(14_229, 142_288) * rate) for rate in (Fraction(1, 10), 1, 4)
    ]
    assert rates(documents, tokens, 3 * 142_288) == ["3/10", "3", "12"]
    assert rates(documents, tokens, 0) == ["0", "0", "0"]


@pytest.mark.parametrize(
    ("budget", "expected", "met"),
    [
        (6_000, ["1/10", "1", "0"], False),  # its natural size: 900 tokens are missing
        (5_100, ["1/10", "1", "0"], True),  # all that the recipe leaves
        (2_550, ["1/20", "1/2", "0"], True),
        (12_000, ["1/5", "2", "0"], False),  # and 1,800
    ],
)
def test_without_long_documents(budget, expected, met):
    assert rates([10, 1, 0], [1_000, 5_000, 0], budget) == expected
    assert mix([10, 1, 0], [1_000, 5_000, 0], budget, PAPER).met is met


@pytest.mark.parametrize(
    ("budget", "expected", "met"),
    [
        (110_000, ["1/10", "0", "3"], False),  # 10,000 + 3 x 10,000 tokens
        (40_000, ["1/10", "0", "3"], True),
        (20_000, ["1/20", "0", "3/2"], True),
        (440_000, ["1/10", "0", "3"], False),
    ],
)
def test_repeats_may_be_limited(budget, expected, met):
    policy = LengthPolicy(max_repeats=3)
    assert rates([100, 0, 1], [100_000, 0, 10_000], budget, policy) == expected
    assert mix([100, 0, 1], [100_000, 0, 10_000], budget, policy).met is met


CLASSES = st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 50)), min_size=4, max_size=4)


@given(CLASSES, st.integers(1, 10**7), st.one_of(st.none(), st.integers(1, 5)))
def test_the_share_of_each_class_does_not_depend_on_the_budget(classes, budget, most):
    """Exactly, whatever the budget, and the budget is met wherever a document may be listed often enough."""
    policy = LengthPolicy(short_below=(4, 8), keep_short=(0.1, 0.7), long_above=15, max_repeats=most)
    documents = [count for count, _ in classes]
    tokens = [count * size for count, size in classes]
    total = sum(tokens)
    if not total:
        return
    natural, scaled = (mix(documents, tokens, size, policy) for size in (total, budget))
    listed = [[rate * count for rate, count in zip(one.rates, tokens, strict=True)] for one in (natural, scaled)]
    assert [part * sum(listed[1]) for part in listed[0]] == [part * sum(listed[0]) for part in listed[1]]
    assert most is None or max(scaled.rates) <= most
    assert sum(listed[1]) <= budget and scaled.met == (sum(listed[1]) == budget)
    if tokens[-1] and most is None:
        assert scaled.met
    if most is None:
        assert sum(listed[1]) * total >= min(sum(listed[0]), budget) * min(budget, total)
