"""gigatoken is watched while it works: a text that it gets wrong stops the run, wherever it stands."""

import numpy as np
import pytest

from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.tokenizer.encoders import GigatokenEncoder
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.recheck import LONGEST, DifferenceError, Samples, recheck
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus
from tests.data.conftest import write_lines
from tests.data.tokenizer.shapes import FLAGGED, llama3

WRONG = "a<tool>b"  # gigatoken takes no account of single_word


@pytest.fixture
def trusting(tmp_path, monkeypatch):
    """A tokenizer that gigatoken gets wrong, and that is believed all the same."""
    monkeypatch.setattr(Tokenizer, "check_fast", lambda self, recipe, sample: True)
    return load_tokenizer(llama3(tmp_path / "t", FLAGGED))


@pytest.mark.parametrize("alone", [1 << 30, 0])
def test_a_difference_stops_the_run_and_names_the_document(tmp_path, monkeypatch, trusting, alone):
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.run._ALONE_BYTES", alone)
    texts = [f"document {i}" for i in range(1500)]
    texts[1000] = WRONG
    path = write_lines(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    with pytest.raises(
        DifferenceError, match=r"in\.jsonl, line 1001: gigatoken gives other ids .* from token 1 on"
    ) as e:
        tokenize_corpus([path], tmp_path / "c", trusting, Fields(), TokenizeOptions(workers=2))
    assert "run again with --encoder reference" in str(e.value) and repr(WRONG) in str(e.value)
    assert not list(tmp_path.glob("c.*"))
    tokenize_corpus([path], tmp_path / "c", trusting, Fields(), TokenizeOptions(workers=2, encoder="reference"))
    corpus = open_corpus(tmp_path / "c")
    assert [corpus.tokens[i].tolist() for i in (999, 1000, 1001)] == [trusting.encode(text) for text in texts[999:1002]]


def test_the_first_of_each_shard_and_the_beginning_of_a_long_text(tmp_path, trusting):
    long = WRONG + " word" * LONGEST
    for text, name in ((long, "a.txt"), ("\u6771" * (LONGEST - 1) + "\u6771" + WRONG, "b.txt")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DifferenceError, match=r"a\.txt: gigatoken gives other ids"):
        tokenize_corpus([tmp_path / "a.txt"], tmp_path / "a", trusting, Fields())
    tokenize_corpus([tmp_path / "b.txt"], tmp_path / "b", trusting, Fields())  # what is wrong lies behind the beginning


def test_which_texts_are_taken(tmp_path, trusting):
    """One in 1,000, counted over batches, whatever the batches are."""
    fast = GigatokenEncoder(trusting.recipe)
    texts = [f"text {i}" for i in range(2500)]
    for size in (1, 700, 999, 1000, 2500):
        samples = Samples()
        for start in range(0, len(texts), size):
            some = texts[start : start + size]
            samples.add(fast, some, fast.encode_batch(some), (3, list(range(start + 1, start + 1 + len(some)))))
        expected = [(3, i + 1, texts[i], trusting.encode(texts[i])) for i in (0, 1000, 2000)]
        assert samples._kept == expected
    samples.write(tmp_path)
    recheck(tmp_path, trusting.reference, lambda number, row: f"{number}/{row}", threads=1)
    assert not (tmp_path / "recheck.json").exists()
    wrong = Samples()
    ids = np.array([1, 2], dtype=np.uint32)
    wrong.add(fast, [b"text"], (ids, np.array([2])), (0, []))
    wrong.write(tmp_path)
    with pytest.raises(DifferenceError, match=r"^0/None: gigatoken gives other ids than the tokenizer's own library"):
        recheck(tmp_path, trusting.reference, lambda number, row: f"{number}/{row}", threads=1)
