import itertools

import numpy as np
import pytest

from megatron_ultralong.evaluation.benchmarks.perplexity_windows import (
    BY_POSITION,
    LAST_WINDOW,
    SLIDING_WINDOW,
    bucket_edges,
    windows,
)
from megatron_ultralong.evaluation.samples import TooShortError


def document(length: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + length, dtype=np.int32)


@pytest.mark.parametrize(
    ("length", "buckets", "edges"),
    [(2048, 4, [0, 256, 512, 1024, 2048]), (1000, 3, [0, 250, 500, 1000]), (4, 6, [0, 2, 4]), (2, 6, [0, 2])],
)
def test_bucket_edges(length: int, buckets: int, edges: list[int]) -> None:
    assert bucket_edges(length, buckets) == edges


def test_by_position_windows_do_not_overlap_and_count_all_but_the_first_token() -> None:
    found = list(windows(BY_POSITION, [document(10), document(3, 50), document(4, 90)], 4, 4, 100, 1))
    assert [window.ids.tolist() for window in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [90, 91, 92, 93]]
    assert [window.index for window in found] == [0, 1, 2]
    assert found[0].buckets == ((1, 2), (2, 4))
    assert found[0].labels == ((0, 2), (2, 4))
    losses = np.array([1.0, 10.0, 100.0], np.float32)
    assert found[0].sums(losses) == [(0, 2, 1.0, 1), (2, 4, 110.0, 2)]


def test_windows_are_spread_where_there_are_too_many() -> None:
    found = windows(BY_POSITION, [document(14)], 2, 2, 3, 1)
    assert [window.ids.tolist() for window in found] == [[0, 1], [4, 5], [8, 9]]


@pytest.mark.parametrize("length", [4, 6, 10])
def test_the_last_window_counts_the_same_tokens_at_every_length(length: int) -> None:
    (found,) = windows(LAST_WINDOW, [document(12)], length, 10, 5, 3)
    ((low, high),) = found.buckets
    assert found.ids[low:high].tolist() == [7, 8, 9]
    assert len(found.ids) == length
    assert found.labels == ((7, 10),)
    assert found.start == length - 3


@pytest.mark.parametrize(("length", "stride"), [(4, 3), (4, 1), (5, 2), (9, 4), (10, 3)])
def test_a_sliding_window_counts_every_token_but_the_first_once(length: int, stride: int) -> None:
    found = list(windows(SLIDING_WINDOW, [document(12), document(11, 100)], length, 10, 5, stride))
    counted = [int(token) for window in found for low, high in window.buckets for token in window.ids[low:high]]
    assert counted == [*range(1, 10), *range(101, 110)]
    for window in found:
        ((low, high),) = window.buckets
        first_of_document = window.ids[0] in (0, 100)
        assert high - low <= (length - 1 if first_of_document else stride)
        assert len(window.ids) == length
        assert window.labels == ((0, 10),)
    assert [window.index for window in found] == list(range(len(found)))
    starts = [int(window.ids[0]) for window in found if window.ids[0] < 100]
    assert all(0 < after - before <= stride for before, after in itertools.pairwise(starts))


def test_documents_that_are_too_short() -> None:
    with pytest.raises(TooShortError, match=r"no document has 10 tokens, the longest has 4; give longer ones"):
        list(windows(BY_POSITION, [document(3), document(4)], 10, 10, 5, 1))
    with pytest.raises(TooShortError, match="a window of 3 tokens cannot count 3 after others; lower --stride"):
        list(windows(LAST_WINDOW, [document(30)], 3, 30, 5, 3))
