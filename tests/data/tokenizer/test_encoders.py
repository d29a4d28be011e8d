import numpy as np
import pytest

from megatron_ultralong.data.tokenizer import encoders
from megatron_ultralong.data.tokenizer.encoders import GigatokenEncoder


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
