"""Groups as they first appear, and within one the order in which neighbours begin alike."""

import itertools

import numpy as np

from megatron_ultralong.evaluation.backends.megatron.reading_order import common, reading_order


def texts(*ids: str) -> list[np.ndarray]:
    return [np.array([ord(letter) for letter in word], dtype=np.uint32) for word in ids]


def test_what_two_texts_begin_with():
    one, other = texts("haystack", "haymaker")
    assert (common(one, other), common(one, one[:3]), common(one, one[:0])) == (3, 3, 0)
    long = np.arange(2_500_000)
    spoilt = long.copy()
    spoilt[2_400_000] = 0
    assert common(long, spoilt) == 2_400_000


def test_order():
    given = texts("xb", "ab", "xa", "aa", "x")
    assert reading_order(given, ["x", "", "x", "", "x"]) == [4, 2, 0, 1, 3]
    assert reading_order([], []) == []


def test_a_grid_of_needles_is_read_at_half_its_tokens():
    """A needle at each of ten depths of one haystack: what is left is what follows the one before."""
    hay = np.arange(1000)
    grid = [np.concatenate((hay[:depth], [7, 7, 7], hay[depth:])) for depth in range(50, 1000, 100)]
    order = reading_order(grid, ["hay"] * len(grid))
    read = len(grid[0])
    read += sum(len(grid[b]) - common(grid[a], grid[b]) for a, b in itertools.pairwise(order))
    assert read / sum(map(len, grid)) < 0.6
