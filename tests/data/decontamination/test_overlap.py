"""What the arrays find against sets of tuples in plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.data.decontamination import ngram_index, overlap
from megatron_ultralong.data.decontamination import plain_words as word_module
from megatron_ultralong.data.decontamination.ngram_index import build_index, load_index
from megatron_ultralong.data.decontamination.overlap import Matcher, corpus_overlaps
from megatron_ultralong.errors import UserError

TABLE = [b"", *(f"w{i} ".encode() for i in range(1, 9))]
"""Tokens 1 to 8 are words; the samples know the first 5."""
SPELLED = [b"w1", b"w2", b"w3", b"w4", b"w5"]


def grams(words, n):
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def slow(documents, samples, n, most):
    """Rows (document, sample, shared n-grams, n-grams of the sample)."""
    own = [grams(sample, n) for sample in samples]
    common = {gram for gram in set().union(*own) if sum(gram in each for each in own) > most}
    own = [each - common for each in own]
    return [
        (i, j, len(grams(document, n) & each), len(each))
        for i, document in enumerate(documents)
        for j, each in enumerate(own)
        if grams(document, n) & each
    ]


def fast(documents, samples, n, most):
    index = build_index([np.array(sample, dtype=np.int32) for sample in samples], n, most)
    found = Matcher(index, SPELLED, TABLE).overlaps(list(enumerate(np.array(d, dtype=np.uint16) for d in documents)))
    for document, sample, ngram in zip(found.documents, found.samples, found.ngrams, strict=True):
        text = index.numbers[index.first[ngram] : index.first[ngram] + n].tolist()
        assert tuple(text) in grams(documents[document], n) & grams(samples[sample], n)
    columns = (found.documents, found.samples, found.shared, index.totals[found.samples])
    return list(zip(*(column.tolist() for column in columns), strict=True))


DOCUMENTS = st.lists(st.lists(st.integers(1, 8), max_size=30), min_size=1, max_size=6)
SAMPLES = st.lists(st.lists(st.integers(1, 5), max_size=20), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, SAMPLES, st.integers(1, 4), st.integers(1, 6), st.sampled_from([1, 2, 5, 1 << 20]))
def test_overlaps_are_those_of_the_slow_twin(documents, samples, n, most, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_module, "_PIECE", piece)
        patch.setattr(overlap, "_BATCH", 3 * piece)
        if not set().union(*(grams(sample, n) for sample in samples)):
            with pytest.raises(UserError, match=rf"no sample has {n} words or more; lower --ngram"):
                fast(documents, samples, n, most)
        else:
            assert fast(documents, samples, n, most) == slow(documents, samples, n, most)


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS, SAMPLES.filter(lambda samples: max(map(len, samples)) > 2))
def test_nothing_counts_by_its_hash_alone(documents, samples):
    """Of hashes of 4 bits nearly all meet others': those of samples are drawn anew, those of documents looked at."""
    whole = ngram_index._random

    def weak(values):
        return whole(values) & np.uint64(15) if int(values.max(initial=0)) < 1 << 34 else whole(values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_index, "_random", weak)
        assert fast(documents, samples, 3, 3) == slow(documents, samples, 3, 3)


def test_a_corpus_in_ranges_and_workers(write_corpus, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    documents = [rng.integers(1, 9, n).tolist() for n in rng.integers(1, 200, 60)]
    samples = [documents[7][:40], documents[7][20:60], rng.integers(1, 6, 50).tolist()]
    samples = [[word for word in sample if word < 6] for sample in samples]
    corpus = write_corpus(documents)
    index = build_index([np.array(sample, dtype=np.int32) for sample in samples], 3, 3)
    monkeypatch.setattr(overlap, "_RANGE", 500)
    found = [list(corpus_overlaps(corpus, index, SPELLED, TABLE, workers)) for workers in (1, 2)]
    rows = [
        np.concatenate([np.stack([some.documents, some.samples, some.shared], axis=1) for some in each]).tolist()
        for each in found
    ]
    assert len(found[0]) > 5
    assert rows[0] == rows[1] == [list(row[:3]) for row in slow(documents, samples, 3, 3)]


def test_ranges_are_every_document_once():
    rng = np.random.default_rng(2)
    for lengths in (rng.integers(0, 1 << 21, 500), np.array([1 << 24]), np.ones(70000, dtype=np.int64)):
        ranges = list(overlap._ranges(lengths.astype(np.int32)))
        assert [begin for begin, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
        assert ranges[-1][1] == len(lengths)
        assert all(lengths[begin : end - 1].sum() < overlap._RANGE for begin, end in ranges)


def test_a_saved_index_is_the_same(tmp_path):
    samples = [np.array([1, 2, 3, 4], dtype=np.int32), np.array([2, 3, 4, 5], dtype=np.int32)]
    index = build_index(samples, 2, 1)
    index.save(tmp_path)
    again = load_index(tmp_path, 2, index.seed)
    for one, other in zip(index.found(samples[0]), again.found(samples[0]), strict=True):
        assert one.tolist() == other.tolist()
    assert index.totals.tolist() == [1, 1]
