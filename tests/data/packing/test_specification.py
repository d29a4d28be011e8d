import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.data.packing import _packing, specification

UNLIMITED = specification.UNLIMITED


def int32(values):
    return np.array(values, dtype=np.int32)


def int64(values):
    return np.array(values, dtype=np.int64)


@st.composite
def streams(draw, shortest=0):
    """Lengths of a corpus, a list of its documents with repeats, and a separator."""
    lengths = draw(st.lists(st.integers(shortest, 12), min_size=1, max_size=8))
    ids = draw(st.lists(st.integers(0, len(lengths) - 1), max_size=12))
    separator = draw(st.lists(st.integers(900, 903), max_size=3))
    return int32(lengths), int64(ids), int64(separator)


def corpus_of(lengths, dtype=np.uint16):
    """Tokens 0, 1, 2, ... on disk, and each document's byte offset."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.arange(lengths.sum(), dtype=dtype), int64(starts * np.dtype(dtype).itemsize)


def joined(lengths, ids, separator):
    """The stream as a list of tokens, written down without any of the code under test."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens: list[int] = []
    for place, document in enumerate(ids.tolist()):
        tokens += separator.tolist() if place else []
        tokens += range(starts[document], starts[document + 1])
    return tokens


def test_borders_by_hand():
    # Stream: 5 tokens, 2 of separator, 3, 2, 4: borders at 0, 4, 8, 12.
    rows, total = _packing.build_sample_index(int32([5, 3, 4]), int64([0, 1, 2]), 2, 4, False)
    assert total == 16
    assert rows.tolist() == [[0, 0], [0, 4], [1, 1], [2, 0]]


def test_best_fit_by_hand():
    # Longest first: 6 opens a bin, 5 another, 4 fills the first, 3 and 1 go to the second; 11 fits nowhere.
    order, offsets = _packing.best_fit(int32([4, 1, 6, 11, 5, 3]), int64([0, 1, 2, 3, 4, 5]), 10, UNLIMITED)
    assert order.tolist() == [0, 2, 1, 4, 5] and offsets.tolist() == [0, 2, 5]


@given(streams(), st.integers(1, 9), st.booleans())
def test_sample_index_equals_its_specification(stream, sequence_length, keep_last):
    lengths, ids, separator = stream
    fast = _packing.build_sample_index(lengths, ids, len(separator), sequence_length, keep_last)
    slow = specification.build_sample_index(lengths, ids, len(separator), sequence_length, keep_last)
    assert fast[0].tolist() == slow[0].tolist() and fast[1] == slow[1]


@given(streams(), st.integers(1, 9), st.booleans())
def test_samples_are_the_stream_cut_with_shared_borders(stream, sequence_length, keep_last):
    lengths, ids, separator = stream
    tokens, offsets = corpus_of(lengths)
    expected = joined(lengths, ids, separator)
    rows, total = _packing.build_sample_index(lengths, ids, len(separator), sequence_length, keep_last)
    assert total == len(expected)
    drop, keep = (total - 1) // sequence_length, -(-(total - 1) // sequence_length)
    assert len(rows) == ((keep if keep_last else drop) + 1 if total else 0)
    count = sequence_length + 1
    samples = [
        _packing.gather(tokens, offsets, lengths, ids, separator, -1, *row, len(ids), UNLIMITED, 0, [(0, count)])[0]
        for row in rows[:-1].tolist()
    ]
    assert all(len(sample) == count for sample in samples)
    rejoined = [token for sample in samples for token in sample[1:].tolist()]
    rejoined = samples[0][:1].tolist() + rejoined if samples else []
    # Every token once and in order, separators exactly between documents; then padding, or only the tail is missing.
    known = expected[:1] + expected[1 : len(rejoined)] if samples else []
    assert rejoined == known + [-1] * (len(rejoined) - len(known))
    assert len(rejoined) - len(known) < sequence_length
    if not (keep_last and total > 1):
        assert len(expected) - len(rejoined) < count + (not samples)


@given(streams(), st.integers(1, 14), st.booleans())
def test_best_fit_equals_its_specification_and_keeps_documents_whole(stream, capacity, cut):
    lengths, ids, _ = stream
    longest = capacity if cut else UNLIMITED
    order, offsets = _packing.best_fit(lengths, ids, capacity, longest)
    slow = specification.best_fit(lengths, ids, capacity, longest)
    assert order.tolist() == slow[0].tolist() and offsets.tolist() == slow[1].tolist()
    fitting = [p for p, document in enumerate(ids.tolist()) if cut or lengths[document] <= capacity]
    assert sorted(order.tolist()) == fitting
    for begin, end in itertools.pairwise(offsets.tolist()):
        assert begin < end and sum(min(n, longest) for n in lengths[ids[order[begin:end]]].tolist()) <= capacity


@settings(max_examples=200)
@given(streams(), st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]), st.data())
def test_gather_and_starts_equal_their_specification(stream, dtype, data):
    lengths, ids, separator = stream
    tokens, offsets = corpus_of(lengths, dtype)
    last = data.draw(st.integers(0, len(ids)))
    position = data.draw(st.integers(0, last))
    offset = data.draw(st.integers(0, 6))
    longest = data.draw(st.sampled_from([5, UNLIMITED]))
    ends = st.integers(0, 25)
    spans = [tuple(sorted(pair)) for pair in data.draw(st.lists(st.tuples(ends, ends), max_size=3))]
    count = data.draw(st.integers(0, 20))
    arguments = (tokens, offsets, lengths, ids, separator, -7, position, offset, last, longest, count, spans)
    for fast, slow in zip(_packing.gather(*arguments), specification.gather(*arguments), strict=True):
        assert fast.tolist() == slow.tolist()


def test_bounds_by_hand():
    # From the second token of the separator behind document 0: 9 | 3 4 5 6 8 9 | 0 1 2, then nothing.
    place = (int64([9, 8, 9]), 0, 0, 5, 3, UNLIMITED)
    arguments = (np.arange(7, dtype=np.uint16), int64([0, 6]), int32([3, 4]), int64([0, 1, 0]), *place)
    tokens, starts, ends = _packing.gather(*arguments, 20, [(0, 12)])
    assert tokens.tolist() == [9, 3, 4, 5, 6, 9, 8, 9, 0, 1, 2, 0]
    assert starts.tolist() == [0, 1, 8, 11] and ends.tolist() == [0, 5, 11]
    assert _packing.gather(*arguments, 2, [])[1].tolist() == [0, 1, 8]


@given(st.lists(st.integers(0, 9), max_size=6), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=3))
def test_positions_equal_their_specification(steps, ranges):
    bounds = np.cumsum([0, *steps], dtype=np.int64)
    spans = [(begin, begin + length) for begin, length in ranges]
    assert _packing.positions(bounds, spans).tolist() == specification.positions(bounds, spans).tolist()


@pytest.mark.parametrize(
    ("bounds", "spans", "names"),
    [([], [], "begin with 0"), ([1, 2], [], "begin with 0"), ([0, 3, 2], [], "ascend"), ([0], [(2, 1)], "spans: 2..1")],
)
def test_positions_refuse_bounds_out_of_order(bounds, spans, names):
    with pytest.raises(ValueError, match=names):
        _packing.positions(int64(bounds), spans)


@pytest.mark.parametrize(
    ("documents", "length", "tokens"),
    [
        (3_000, 2**20, 3_000 * 2**20 + 2_999 * 3),  # past 2^31
        (600, 2**31 - 1, 600 * (2**31 - 1) + 599 * 3),  # past 2^40
    ],
)
def test_counts_are_right_past_32_bits(documents, length, tokens):
    ids = np.arange(documents, dtype=np.int64)
    lengths = np.full(documents, length, np.int32)
    rows, total = _packing.build_sample_index(lengths, ids, 3, 4_194_304, False)
    assert total == tokens
    samples = (tokens - 1) // 4_194_304
    assert len(rows) == samples + 1
    border = samples * 4_194_304
    assert rows[-1].tolist() == [border // (length + 3), border % (length + 3)]
    kept, _ = _packing.build_sample_index(lengths, ids, 3, 4_194_304, True)
    assert kept[:-1].tolist() == rows.tolist() and kept[-1].tolist() == [documents, 0]


def test_a_count_that_single_precision_rounds_wrongly():
    # 4,210,032,642 tokens at 1,048,576 are 4,015 samples and two tokens more, so 4,016 with the last one kept:
    # megatron-core 0.16.1 counts 4,015 there, because it rounds in float32.
    lengths = np.full(4_015, 1_048_576, np.int32)
    lengths[-1] += 2
    for keep_last, samples in ((False, 4_015), (True, 4_016)):
        ids = np.arange(4_015, dtype=np.int64)
        rows, total = _packing.build_sample_index(lengths, ids, 0, 1_048_576, keep_last)
        assert total == 4_210_032_642 and len(rows) == samples + 1
        assert rows[4_015].tolist() == [4_014, 1_048_576]
    assert rows[-1].tolist() == [4_015, 0]


GOOD = {
    "tokens": np.arange(7, dtype=np.uint16),
    "offsets": int64([0, 6]),
    "lengths": int32([3, 4]),
    "document_ids": int64([0, 1]),
    "separator": int64([9]),
    "fill": 0,
    "position": 0,
    "offset": 0,
    "last": 2,
    "longest": UNLIMITED,
    "count": 0,
    "spans": [(0, 8)],
}


def test_the_arguments_that_the_bad_ones_are_made_from():
    assert _packing.gather(**GOOD)[0].tolist() == [0, 1, 2, 9, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"document_ids": int64([0, 2])}, "lengths: index 2"),
        ({"document_ids": int64([0, -1])}, "lengths: index -1"),
        ({"offsets": int64([0])}, "offsets: index 1"),
        ({"offsets": int64([0, 8])}, "offsets: document 1 reaches outside"),
        ({"offsets": int64([0, 2**62])}, "offsets: document 1 reaches outside"),
        ({"offsets": int64([-2, 6])}, "offsets: document 0 reaches outside"),
        ({"offsets": int64([1, 6])}, "offsets: document 0 reaches outside"),
        ({"lengths": int32([3, 2**31 - 1])}, "offsets: document 1 reaches outside"),
        ({"lengths": int32([-3, 4])}, "lengths: document 0 has length -3"),
        ({"lengths": int64([3, 4])}, "lengths: expected int32"),
        ({"tokens": np.arange(7, dtype=np.float32)}, "tokens: float32"),
        ({"tokens": np.arange(14, dtype=np.uint16)[::2]}, "tokens: expected a contiguous"),
        ({"last": 3}, "stream"),
        ({"position": -1}, "start"),
        ({"offset": -1}, "start"),
        ({"spans": [(4, 3)]}, "spans: 4..3"),
        ({"spans": [(0, 2**62)]}, "spans: 0"),
    ],
)
def test_an_index_outside_its_array_is_an_error(changes, names):
    with pytest.raises(ValueError, match=names):
        _packing.gather(**{**GOOD, **changes, "spans": changes.get("spans", [(0, 20)])})


def test_builders_refuse_what_they_cannot_index():
    with pytest.raises(ValueError, match="lengths: index 5"):
        _packing.build_sample_index(int32([1]), int64([5]), 0, 4, False)
    with pytest.raises(ValueError, match="sequence_length: must be positive, got 0"):
        _packing.build_sample_index(int32([1]), int64([0]), 0, 0, False)
    with pytest.raises(ValueError, match="capacity: must be positive, got -1"):
        _packing.best_fit(int32([1]), int64([0]), -1, UNLIMITED)


def test_a_slice_large_enough_for_threads_is_that_slice_of_the_whole():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 3000, 400).astype(np.int32)
    tokens = np.arange(lengths.sum(), dtype=np.int32)
    offsets = (np.cumsum(lengths, dtype=np.int64) - lengths) * 4
    separator = np.array([-1, -2], dtype=np.int64)

    def gather(spans):
        ids = np.arange(400, dtype=np.int64)
        return _packing.gather(
            tokens, offsets, lengths, ids, separator, -3, 0, 5, 400, specification.UNLIMITED, 0, spans
        )[0]

    whole = gather([(0, 700_000)])
    spans = [(7, 100_000), (300_000, 420_001)]
    for several in (spans, [*spans, *((begin + 1, end + 1) for begin, end in spans)]):
        assert np.array_equal(gather(several), np.concatenate([whole[begin:end] for begin, end in several]))
