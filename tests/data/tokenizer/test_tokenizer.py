import base64
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_ultralong.data.tokenizer.encoders import GigatokenEncoder, Recipe
from megatron_ultralong.data.tokenizer.identity import check_tokenizer, tokenizer_fingerprint
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.errors import UserError

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = ["def f(x):\n    return x + 12345\n", "", "na\u00efve \U0001f600 <|im_end|>", "<s>"]


def rows(batch):
    ids, lengths = batch
    return [piece.tolist() for piece in np.split(ids, np.cumsum(lengths)[:-1])]


def test_ids_are_transformers(tokenizer_folder, tokenizer):
    expected = [tokenizer.hf(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [tokenizer.encode(text) for text in TEXTS] == expected
    assert [tokenizer.decode(ids) for ids in expected] == TEXTS
    slow = load_tokenizer(tokenizer_folder)
    assert rows(slow.encode_batch(TEXTS)) == expected
    assert slow.check_fast(slow.likely_recipe, TEXTS[:1])
    fast = GigatokenEncoder(slow.likely_recipe)
    assert rows(fast.encode_batch(TEXTS)) == expected
    assert fast.encode_batch(TEXTS)[0].dtype == np.uint32 and fast.encode_batch([])[1].tolist() == []


def test_size_and_fingerprint(tokenizer_folder, tokenizer):
    assert tokenizer.vocab_size == len(tokenizer.hf)
    assert tokenizer.fingerprint == tokenizer_fingerprint(tokenizer_folder)
    assert len(tokenizer.encode("<s>")) == 3  # the separator is ordinary text


def test_a_tokenizer_that_gigatoken_refuses_stays_with_hugging_face(tokenizer_folder, tmp_path, caplog):
    shutil.copytree(tokenizer_folder, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}
    path.write_text(json.dumps(content))
    other = load_tokenizer(tmp_path / "other")
    with caplog.at_level(logging.INFO):
        assert not other.check_fast(other.recipe, TEXTS)
    assert "the slower reference is used" in caplog.text
    assert rows(other.encode_batch(TEXTS)) == [other.encode(text) for text in TEXTS]


def test_a_missing_a_broken_and_a_wrong_tokenizer(tokenizer_folder, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer is missing; name a folder"):
        load_tokenizer(tmp_path)
    shutil.copytree(tokenizer_folder, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"broken: the tokenizer cannot be loaded \(.*\); mend its files"):
        load_tokenizer(tmp_path / "broken")
    check_tokenizer(tokenizer_folder, tokenizer_fingerprint(tokenizer_folder), tmp_path / "corpus")
    with pytest.raises(UserError, match=r"is not the tokenizer that made .*corpus\.bin; name that one"):
        check_tokenizer(tmp_path / "broken", tokenizer_fingerprint(tokenizer_folder), tmp_path / "corpus")


def test_gigatoken_that_differs_is_not_used(tokenizer_folder, tmp_path, tokenizer, caplog):
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["z"], vocab["q"] = vocab["q"], vocab["z"]
    with caplog.at_level(logging.INFO):
        assert not tokenizer.check_fast(Recipe("huggingface", json.dumps(content).encode()), ["quiz"])
    assert "gigatoken gives other ids" in caplog.text


def test_raw_bytes():
    raw = load_tokenizer("bytes")
    assert raw.encode("a\u00e9") == [97, 195, 169] and raw.decode([97, 195, 169]) == "a\u00e9"
    assert raw.vocab_size == 256 and raw.fingerprint == tokenizer_fingerprint("bytes")
    with pytest.raises(UserError, match="bytes: has no chat template and no special tokens"):
        _ = raw.hf


def test_a_sentencepiece_model(tmp_path):
    import sentencepiece

    lines = Path(__file__).read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    ours, theirs = load_tokenizer(tmp_path), sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    assert ours.vocab_size == 400
    assert rows(ours.encode_batch(TEXTS)) == [theirs.encode(text) for text in TEXTS]
    assert ours.decode(ours.encode("def f(x):")) == "def f(x):"
    assert ours.fingerprint == tokenizer_fingerprint(tmp_path / "tokenizer.model")
    if ours.check_fast(ours.likely_recipe, lines):
        assert rows(GigatokenEncoder(ours.likely_recipe).encode_batch(lines)) == [theirs.encode(line) for line in lines]


def test_a_tiktoken_file(tmp_path):
    """The ids are tiktoken's own, for a file of byte pairs as Llama 3's, and gigatoken's are the same."""
    import tiktoken
    from tiktoken._educational import bpe_train

    text = Path(__file__).read_text()
    ranks = bpe_train(text * 2, 300, LLAMA3_SPLIT, visualise=None)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    theirs = tiktoken.Encoding("test", pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(path)
    texts = [*TEXTS, text]
    assert ours.vocab_size == theirs.n_vocab == 300
    assert rows(ours.encode_batch(texts)) == [theirs.encode_ordinary(each) for each in texts]
    assert ours.check_fast(ours.likely_recipe, texts)


def test_the_file_in_a_folder(tmp_path):
    with pytest.raises(UserError, match="a sentencepiece or tiktoken file, or 'bytes'"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
