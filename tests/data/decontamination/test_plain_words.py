import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ultralong.data.decontamination import plain_words as module
from megatron_ultralong.data.decontamination.plain_words import document_words, is_unspaced, words
from megatron_ultralong.data.tokenizer.token_bytes import token_bytes
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from tests.data.tokenizer import shapes


def slow(text):
    """A character at a time."""
    kept = ""
    for character in text.decode(errors="replace").casefold():
        if character in string.punctuation or unicodedata.category(character).startswith("P"):
            continue
        kept += f" {character} " if is_unspaced(character) and not character.isspace() else character
    return [word.encode() for word in kept.split()]


def janitor(text):
    """lm-evaluation-harness's: small ASCII letters, string.punctuation deleted, split."""
    table = str.maketrans(string.ascii_uppercase, string.ascii_lowercase, string.punctuation)
    return [word.encode() for word in text.translate(table).split()]


LETTERS = "aZ0 \n\t.'-_é\u2019—“ßΣςİﬁ中。文\u3000กำ\u00a0\x1c\x85İñЖ€\u0301"


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(st.text(LETTERS).map(str.encode), st.text().map(lambda text: text.encode(errors="replace")), st.binary())
)
def test_words_are_those_of_the_slow_twin(text):
    assert words(text) == slow(text)


@settings(deadline=None)
@given(st.text(string.printable))
def test_of_ascii_they_are_lm_evaluation_harnesses(text):
    assert words(text.encode()) == janitor(text)


def test_by_hand():
    text = "Don't — “STOP”,  me: 3.5\n(naïve) 中国。 ÉCOLE straße"
    assert b" ".join(words(text.encode())).decode() == "dont stop me 35 naïve 中 国 école strasse"


TEXTS = ("Hello, world! It's 12:30 — “naïve” 中文 и ещё\n\n  two  spaces\tand tabs 🙂", "x" * 50, "")


@pytest.mark.parametrize("name", sorted(shapes.SHAPES))
def test_a_tokens_bytes_make_the_words_of_its_text(tmp_path, name):
    """Of every kind of tokenizer that the project reads; special tokens are no words."""
    tokenizer = load_tokenizer(shapes.build(name, tmp_path / name))
    table = token_bytes(tokenizer)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert words(b"".join(table[i] for i in ids)) == words(text.encode()), text


def test_a_document_is_cut_where_no_word_is(monkeypatch, tokenizer):
    import numpy as np

    table = token_bytes(tokenizer)
    ids = np.array(tokenizer.encode("some words, “more” words\nand 中文 " * 9), dtype=np.uint16)
    whole = [word for piece in document_words(ids, table) for word in piece]
    assert whole == words(b"".join(table[i] for i in ids)) and len(whole) > 60
    for piece in (1, 2, 7):
        monkeypatch.setattr(module, "_PIECE", piece)
        assert [word for some in document_words(ids, table) for word in some] == whole
