"""Intervals against what arithmetic says they must be."""

import math

import numpy as np
import pytest

from megatron_ultralong.evaluation.report.bootstrap import RESAMPLES, average, estimate


def binomial_quantile(n: int, ones: int, share: float) -> float:
    """Of the mean of n draws with replacement from n values of which `ones` are 1: the bootstrap's exact law."""
    p, below = ones / n, 0.0
    for k in range(n + 1):
        below += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if below >= share:
            return k / n
    return 1.0


@pytest.mark.parametrize(("n", "ones"), [(20, 13), (50, 49), (200, 20), (8, 4)])
def test_the_interval_is_the_binomials(n, ones):
    found = estimate([1.0] * ones + [0.0] * (n - ones), "cell")
    assert found.mean == pytest.approx(ones / n) and found.samples == n
    low, high = found.interval
    # 2,000 draws put a 2.5 % quantile within one step of the exact one
    assert abs(low - binomial_quantile(n, ones, 0.025)) <= 1 / n + 1e-12
    assert abs(high - binomial_quantile(n, ones, 0.975)) <= 1 / n + 1e-12


def test_samples_that_agree_have_no_spread():
    assert estimate([100.0] * 8, "cell").interval == (100.0, 100.0)


def test_a_mean_of_cells_weighs_them_alike_and_is_narrower():
    cells = [estimate([0.0, 100.0] * 10, f"cell {place}") for place in range(16)]
    both = average([estimate([0.0], "a"), estimate([100.0] * 9, "b")])
    assert (both.mean, both.samples) == (50.0, 10)
    assert average(cells).mean == 50.0
    wide, narrow = (high - low for low, high in (cells[0].interval, average(cells).interval))
    assert narrow == pytest.approx(wide / 4, rel=0.15)  # independent cells: by the square root of their number


def test_the_same_cell_draws_the_same_and_another_differently():
    scores = [float(place) for place in range(10)]
    one, again, other = estimate(scores, "a"), estimate(scores, "a"), estimate(scores, "b")
    assert len(one.drawn) == RESAMPLES
    assert np.array_equal(one.drawn, again.drawn) and not np.array_equal(one.drawn, other.drawn)
