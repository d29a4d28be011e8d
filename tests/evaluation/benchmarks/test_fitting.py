import random

import numpy as np
import pytest

from megatron_ultralong.evaluation.benchmarks.fitting import MOST, ListedPlan, fit


def linear(measure, most, limit):
    """The slow twin: every number of units in turn."""
    found = None
    for count in range(most + 1):
        if measure(count) > limit:
            break
        found = count
    return found


@pytest.mark.parametrize("case", range(200))
def test_where_counts_add_up_the_most_units_are_found_in_few_measurements(case):
    rng = random.Random(case)
    tokens = np.array([rng.randint(1, 60) for _ in range(rng.randint(1, 400))])
    sums, fixed = np.concatenate([[0], np.cumsum(tokens)]), rng.randint(0, 100)
    calls = []

    def measure(count):
        calls.append(count)
        return fixed + int(sums[count])

    limit = rng.randint(0, fixed + int(sums[-1]) + 50)
    expected = linear(lambda count: fixed + int(sums[count]), len(tokens), limit)
    found = fit(ListedPlan(tokens), measure, limit)
    assert (found and found[0]) == expected
    assert found is None or found[1] == fixed + int(sums[found[0]])
    assert len(calls) <= 3


@pytest.mark.parametrize("price", [0.5, 0.8, 1.0, 1.3, 2.0])
def test_a_plan_that_is_off_everywhere_still_fills_the_length(price):
    """Words that count otherwise alone than in a text, by a factor and by a token here and there."""
    rng = random.Random(5)
    tokens = np.array([rng.randint(1, 3) for _ in range(20_000)])
    true = np.concatenate([[0], np.cumsum([max(round(price * n + rng.uniform(-0.5, 0.5)), 0) for n in tokens])])
    for limit in rng.sample(range(200, int(true[-1])), 200):
        calls = []

        def measure(count, calls=calls):
            calls.append(count)
            return 100 + int(true[count])

        count, measured = fit(ListedPlan(tokens), measure, limit)
        assert measured == 100 + true[count] <= limit
        assert len(calls) <= MOST
        rest = limit - measured
        assert count == len(tokens) or rest <= max(4, 3 * price + 1), (limit, rest)


def test_what_does_not_fit_without_any_filler_is_no_fit():
    assert fit(ListedPlan(np.array([1, 1])), lambda count: 11 + count, 10) is None
    assert fit(ListedPlan(np.array([5])), lambda count: 10 + 5 * count, 10) == (0, 10)
