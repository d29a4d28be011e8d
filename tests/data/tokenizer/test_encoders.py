import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.data.tokenizer import encoders
from megatron_ultralong.data.tokenizer.cutting import is_cuttable, last_cut, next_cut, pieces
from megatron_ultralong.data.tokenizer.encoders import GigatokenEncoder

WORDS = st.sampled_from(
    ["a", "Bc", " ", "  ", "\n", "\r\n", "\t", "7", "1234", ".", "'s", "'", "\u6771", "\u00e9", "<|im_end|>"]
)


@settings(max_examples=300, deadline=None)
@given(words=st.lists(WORDS, max_size=60), size=st.integers(1, 20))
def test_cutting_changes_no_id(tokenizer, words, size):
    text = "".join(words)
    cut = list(pieces(text, size))
    assert "".join(cut) == text and all(len(piece) >= size for piece in cut[:-1])
    ids = [i for piece in cut for i in tokenizer.encode(piece)]
    assert ids == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("", 0, 0),
        ("a b", 1, 1),
        (" a b c ", 2, 4),
        ("a  b", 0, 0),
        ("a 1 b.c d", 7, 7),
        ("a ", 0, 0),
        ("\u00e9 b", 0, 0),
    ],
)
def test_places_to_cut(text, first, last):
    assert (next_cut(text, 0), last_cut(text)) == (first, last)


def test_what_may_be_cut(tokenizer_folder):
    content = (tokenizer_folder / "tokenizer.json").read_text()
    assert is_cuttable(json.loads(content))
    for change in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Digits", "individual_digits": True}},
        {"pre_tokenizer": None},
        {"added_tokens": [{"content": "end of text", "rstrip": False}]},
        {"added_tokens": [{"content": "end", "rstrip": True}]},
    ):
        assert not is_cuttable({**json.loads(content), **change}), change


@pytest.mark.parametrize("threads", [1, 3])
def test_gigatoken_on_threads_and_built_anew_gives_the_same_ids(tokenizer, monkeypatch, threads):
    monkeypatch.setattr(encoders, "PIECE", 10)
    texts = [f"some words, {'some' * (i % 5)} 123" for i in range(20)]
    fast = GigatokenEncoder(tokenizer.likely_recipe)
    ids, lengths = fast.encode_batch(texts, threads)
    assert len(fast._fast) == threads
    assert [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])] == [
        tokenizer.encode(text) for text in texts
    ]
    first = fast._fast[0]
    fast._limit = 0
    again = fast.encode_batch([text.encode() for text in texts], threads)
    assert fast._fast[0] is not first
    assert np.array_equal(ids, again[0]) and np.array_equal(lengths, again[1])
