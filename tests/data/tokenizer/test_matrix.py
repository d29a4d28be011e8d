"""Every shape of tokenizer over every script: ids are those of transformers' AutoTokenizer, or of the format's library.

Ours are compared as the reference encoder gives them, as gigatoken does where it is accepted, and as a whole corpus
holds them, cut into shards and pieces.
"""

import functools
import json

import numpy as np
import pytest

from megatron_ultralong.data.corpus.corpus import open_corpus
from megatron_ultralong.data.tokenizer import cutting, encoders
from megatron_ultralong.data.tokenizer.encoders import GigatokenEncoder
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from megatron_ultralong.data.tokenizing import readers, recheck
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.run import TokenizeOptions, tokenize_corpus
from tests.data.conftest import write_lines
from tests.data.tokenizer.scripts import SCRIPTS, fuzz, neighbours
from tests.data.tokenizer.shapes import SHAPES, added_tokens, build, reference

ACCEPTED = {
    *("llama3", "gpt2", "gpt2-prefix", "qwen2", "qwen2-nfc-by-class", "llama2", "llama2-prepend", "llama2-model"),
    *("mistral-first", "mistral-always", "mistral-never", "gemma", "tiktoken"),
}
"""Shapes that gigatoken 0.10 gets right, so that a change for the worse is seen too."""


@pytest.fixture(scope="session")
def shape(tmp_path_factory):
    """A function from a shape's name to its path, our tokenizer, the definition of its ids, and gigatoken or None."""

    @functools.cache
    def made(name):
        path = build(name, tmp_path_factory.mktemp("shapes") / name)
        ours = load_tokenizer(path)
        is_right = str(path) != "bytes" and ours.check_fast(ours.recipe, [])
        return path, ours, reference(path), GigatokenEncoder(ours.recipe) if is_right else None

    return made


def rows(batch):
    ids, lengths = batch
    return [piece.tolist() for piece in np.split(ids, np.cumsum(lengths)[:-1])]


def check(shape, name, texts):
    _, ours, theirs, fast = shape(name)
    expected = [list(theirs(text)) for text in texts]
    for encoder in (ours.reference, fast) if fast else (ours.reference,):
        got = rows(encoder.encode_batch(texts))
        assert next(((t, a, b) for t, a, b in zip(texts, got, expected, strict=True) if a != b), None) is None


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", SHAPES)
def test_ids_of_every_script(shape, name, script):
    text = SCRIPTS[script]
    check(shape, name, [text, text[1:-1], text * 3, *text.splitlines(), *text.split()[:20]])


@pytest.mark.parametrize("name", SHAPES)
def test_ids_beside_added_tokens(shape, name):
    check(shape, name, [text for token in added_tokens(shape(name)[0]) for text in neighbours(token)] or [""])


@pytest.mark.parametrize("name", SHAPES)
def test_ids_of_5000_adversarial_texts(shape, name):
    check(shape, name, list(fuzz(5000, added_tokens(shape(name)[0]))))


@pytest.mark.parametrize("name", SHAPES)
def test_which_shapes_gigatoken_encodes(shape, name):
    assert (shape(name)[3] is not None) == (name in ACCEPTED)


@pytest.mark.parametrize(
    ("name", "workers"),
    [*((name, 1) for name in SHAPES), *((name, 2) for name in ("llama3", "qwen2-nfc-by-class", "llama2", "added-nfc"))],
)
def test_ids_of_a_corpus(tmp_path, monkeypatch, shape, name, workers):
    """In this process and in others: short texts, long ones that are cut, a text file, in many shards."""
    path, ours, theirs, _ = shape(name)
    texts = [*SCRIPTS.values(), *fuzz(300, added_tokens(path), seed=2), "\n".join(SCRIPTS.values()) * 3]
    write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    (tmp_path / "b.txt").write_text(texts[-1] * 2, encoding="utf-8", newline="")
    monkeypatch.setattr(recheck, "EVERY", 7)
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.shards._SHARD_BYTES", 20000)
    monkeypatch.setattr("megatron_ultralong.data.tokenizing.run._ALONE_BYTES", 0 if workers > 1 else 1 << 30)
    monkeypatch.setattr(readers, "_LONG", 1000)
    monkeypatch.setattr(encoders, "PIECE", 200)
    monkeypatch.setattr(cutting.Cuts.pieces, "__defaults__", (200,))
    monkeypatch.setattr(cutting.Cuts.stream, "__defaults__", (200,))
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    manifest = tokenize_corpus(inputs, tmp_path / "c", load_tokenizer(path), Fields(), TokenizeOptions(workers=workers))
    corpus = open_corpus(tmp_path / "c")
    expected = [ids for text in [*texts, texts[-1] * 2] if (ids := list(theirs(text)))]
    assert manifest["shards"] > 3 and manifest["vocab_size"] == ours.vocab_size
    assert [corpus.tokens[i].tolist() for i in range(len(corpus.tokens))] == expected


def test_the_class_decides_and_not_the_file(shape, tmp_path):
    """Qwen2Tokenizer composes marks though its file has no normalizer."""
    path, ours, _, _ = shape("qwen2-nfc-by-class")
    assert json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))["normalizer"] is None
    assert not ours.is_effective(ours.likely_recipe) and ours.is_effective(ours.recipe)
    assert ours.encode("e\u0301") == ours.encode("\u00e9")
    by_file = GigatokenEncoder(ours.likely_recipe)
    assert rows(by_file.encode_batch(["e\u0301"])) != [ours.encode("\u00e9")]
    _, plain, _, _ = shape("qwen2")
    assert plain.is_effective(plain.likely_recipe)


def test_a_token_of_a_single_word_stays_in_words(shape):
    _, ours, theirs, _ = shape("added-byte-level")
    (tool,) = ours.encode("<tool>")
    assert tool not in ours.encode("a<tool>b") and ours.encode("a<tool>b") == theirs("a<tool>b")
    assert tool in ours.encode("a <tool> b")


def test_special_tokens_are_split_where_the_folder_says_so(shape):
    (_, split, theirs, _), (_, plain, _, _) = shape("split-special"), shape("added-byte-level")
    assert split.encode("x<|eot_id|>") == theirs("x<|eot_id|>") != plain.encode("x<|eot_id|>")
    assert len(split.encode("<|eot_id|>")) > 1 == len(plain.encode("<|eot_id|>"))
    assert len(split.encode("<plain-tool>")) == 1  # added, but not special
