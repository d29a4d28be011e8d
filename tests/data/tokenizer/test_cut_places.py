"""Ids of pieces against ids of the whole: every shape of tokenizer, every known split, every script."""

import itertools
import json
import random
import unicodedata

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

from megatron_ultralong.data.tokenizer import cut_places
from megatron_ultralong.data.tokenizer.cut_places import find_cuts
from megatron_ultralong.data.tokenizer.encoders import as_strings
from megatron_ultralong.data.tokenizer.tokenizer import load_tokenizer
from tests.data.tokenizer.scripts import SCRIPTS, fuzz, neighbours
from tests.data.tokenizer.shapes import SHAPES, added_tokens, build, gpt2, llama3, mistral, qwen2, token

SPLITS = {name: getattr(cut_places, f"_{name}") for name in ("GPT2", "LLAMA3", "QWEN2", "QWEN35", "TEKKEN", "O200K")}
SPLITS = {name: (split,) for name, split in SPLITS.items()} | {"DEEPSEEK": cut_places._DEEPSEEK}
UNCUT = ("sentencepiece-bpe", "sentencepiece-unigram")
"""Those whose normalizer changes white space."""


def texts_of(count, specials, seed=0):
    """Half of them adversarial, half as written: runs of sentences in one to three scripts, from anywhere."""
    yield from fuzz(count // 2, specials, seed)
    draw = random.Random(seed)
    for _ in range(count - count // 2):
        text = "".join(draw.choices(list(SCRIPTS.values()), k=draw.randrange(1, 4)))
        start = draw.randrange(len(text))
        text = text[start : start + draw.randrange(1, 200)]
        yield unicodedata.normalize("NFD", text) if draw.random() < 0.2 else text


def check(encoder, texts):
    """Compare, and return how many cuts were made."""
    whole, lengths = encoder.encode_batch(texts)
    cuts = 0
    for given in (texts, [text.encode() for text in texts]):
        cut = [list(encoder.cuts.pieces(text, 1)) for text in given]
        cuts += sum(map(len, cut)) - len(cut)
        ids, counts = encoder.encode_batch([piece for row in cut for piece in row])
        first = np.cumsum([0, *map(len, cut)])
        counts = np.diff(np.concatenate([[0], np.cumsum(counts)])[first])
        if not np.array_equal(ids, whole):
            row = next(
                i
                for i, (ours, theirs) in enumerate(
                    zip(np.split(ids, np.cumsum(counts)), np.split(whole, np.cumsum(lengths)), strict=True)
                )
                if not np.array_equal(ours, theirs)
            )
            raise AssertionError(f"{texts[row]!r} cut as {cut[row]!r}")
        assert np.array_equal(counts, lengths)
    return cuts


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", SHAPES)
def test_ids_of_pieces_are_those_of_the_whole(shape, count, tmp_path):
    """Texts cut at every exact place, as strings and as UTF-8, and every added token's neighbours."""
    path = build(shape, tmp_path)
    encoder = load_tokenizer(path).reference
    if shape in UNCUT:
        assert encoder.cuts is None
        return
    specials = added_tokens(path) if shape != "bytes" else []
    texts = [*texts_of(count, specials), *(text for each in specials for text in neighbours(each))]
    assert check(encoder, texts) > 4 * count


@pytest.fixture(scope="module", params=SPLITS)
def split(request):
    """A pre-tokenizer with one of the known splits, and the Cuts of a tokenizer that has it."""
    parts = [pre_tokenizers.Split(Regex(part), "isolated") for part in SPLITS[request.param]]
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(parts)
    model.normalizer = normalizers.NFC()
    return model.pre_tokenizer, find_cuts(json.loads(model.to_str())), request.param


def parts_of(pre_tokenizer, text):
    return [part for part, _ in pre_tokenizer.pre_tokenize_str(unicodedata.normalize("NFC", text))]


def compare_parts(split, texts):
    """Parts, which decide the ids whatever the vocabulary, and how many cuts were made."""
    pre_tokenizer, cuts, _ = split
    made = 0
    for text in texts:
        pieces = list(cuts.pieces(text, 1))
        if len(pieces) > 1:
            made += len(pieces) - 1
            parts = [part for piece in pieces for part in parts_of(pre_tokenizer, piece)]
            assert parts == parts_of(pre_tokenizer, text), pieces
            assert as_strings(list(cuts.pieces(text.encode(), 1))) == pieces
    return made


def test_every_order_of_classes_of_characters(split):
    """All texts of four characters, one or two of each class that a split, or NFC, tells apart."""
    classes = "aSs'7 \t\n\r./\u0e01\u0e31\u4e1c\u30a2\u30fb\u3002\u0301\x00\u00a0"
    assert compare_parts(split, map("".join, itertools.product(classes, repeat=4))) > 50_000


def test_every_script_under_every_split(split):
    assert compare_parts(split, texts_of(500, [], seed=1)) > 3000


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_is_without_places(split, script):
    """Without spaces and line ends, a text is still cut often; but not emoji, nor Thai where marks are letters."""
    _, cuts, name = split
    text = "".join(SCRIPTS[script].split()) * 4
    longest = max(map(len, cuts.pieces(text, 1)))
    marks_are_letters = name in ("QWEN35", "TEKKEN", "O200K", "DEEPSEEK")
    assert (longest > 100) == (script == "emoji" or (script == "thai" and marks_are_letters)), longest


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        ("a  b\n\nc", ["a", "  b", "\n\nc"]),
        ("a.. b", ["a", "..", " b"]),
        ("\u00a0 a\t b", ["\u00a0 a\t b"]),
        ("don't x'S", ["don't", " x'S"]),
        ("ab12.5", ["ab", "12", ".5"]),
        ("Ж ё", ["Ж", " ё"]),
        ("東京、大阪。", ["東京", "、大阪", "。"]),
        ("เกิด", ["เก", "ิด"]),
        ("e\u0301 e\u0301", ["e\u0301", " e\u0301"]),
        ("\U0001f600 \U0001f600\u200b x", ["\U0001f600", " \U0001f600\u200b x"]),
    ],
)
def test_places(text, pieces, tmp_path):
    cuts = load_tokenizer(qwen2(tmp_path)).reference.cuts
    assert list(cuts.pieces(text, 1)) == pieces
    assert as_strings(list(cuts.pieces(text.encode(), 1))) == pieces


@pytest.mark.parametrize(
    ("shape", "added", "text", "pieces"),
    [
        (llama3, token("a b. c"), "a b. c a b. d", ["a b. c", " a", " b", ".", " d"]),
        (llama3, token("tool "), "a tool b tool.", ["a", " tool b", " tool", "."]),
        (llama3, token("<t>", rstrip=True), "a <t> b <u> c", ["a", " <t> b", " <u>", " c"]),
        (llama3, token("<t>", lstrip=True), "a  <t> b", ["a", "  <t>", " b"]),
        (llama3, token("Tool", single_word=True), "a Tool b Tool1", ["a", " Tool b", " Tool1"]),
        (llama3, token(" Tool", single_word=True), "a Tool b Tools", ["a Tool b Tools"]),
        (qwen2, token("é b", normalized=True), "e b\ne\u0301 b", ["e b", "\ne\u0301 b"]),
        (qwen2, token("é", normalized=True, rstrip=True), "e\u0301 b.c", ["e\u0301 b", ".c"]),
        (qwen2, token("\uf900", normalized=True, single_word=True), "\u8c481 b", ["\u8c481", " b"]),
        (qwen2, token("q", normalized=True, single_word=True), "q b q1.", ["q b", " q1", "."]),
        (mistral, token("a b"), "a b c a c", ["a b", " c", " a", " c"]),
    ],
)
def test_added_tokens_forbid_a_cut_where_they_lie(shape, added, text, pieces, tmp_path):
    encoder = load_tokenizer(shape(tmp_path, added=[added])).reference
    assert list(encoder.cuts.pieces(text, 1)) == pieces
    check(encoder, [text])


def test_a_space_that_each_text_gets_is_dropped_with_the_cut(tmp_path):
    encoder = load_tokenizer(build("llama2-prepend", tmp_path)).reference
    assert list(encoder.cuts.pieces("a b  c <s> d e ", 1)) == ["a", "b  c <s> d", "e "]
    assert list(encoder.cuts.pieces("a 東京、大阪 b".encode(), 1)) == [b"a", "東京、大阪".encode(), b"b"]


def test_what_is_cut_before_spaces_only(tmp_path):
    for path in (gpt2(tmp_path / "a", prefix=True), mistral(tmp_path / "b")):
        cuts = load_tokenizer(path).reference.cuts
        assert list(cuts.pieces("東京、大阪\n1 b", 1)) == ["東京、大阪\n1", " b"]


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        ("llama3", {"normalizer": {"type": "Lowercase"}}),
        ("llama3", {"normalizer": {"type": "NFKC"}}),
        ("llama3", {"pre_tokenizer": {"type": "Digits", "individual_digits": True}}),
        ("llama3", {"pre_tokenizer": None}),
        ("gpt2", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}}),
        ("mistral-first", {"normalizer": {"type": "NFKC"}}),
        ("mistral-first", {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "split": False}}),
        ("unigram", {"pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "split": False}}),
        ("llama2-prepend", {"normalizer": {"type": "Prepend", "prepend": "\u2581"}}),
        ("gemma", {"pre_tokenizer": {"type": "Whitespace"}}),
    ],
)
def test_other_tokenizers_are_not_cut(shape, change, tmp_path):
    content = json.loads((build(shape, tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    assert find_cuts(content) is not None
    assert find_cuts({**content, **change}) is None


@pytest.mark.parametrize("change", [{"c\u2581": 5000}, {"ignore_merges": True}, {"end_of_word_suffix": "</w>"}])
def test_what_merges_across_a_space_is_not_cut(change, tmp_path):
    content = json.loads((mistral(tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    assert find_cuts(content) is not None
    if "c\u2581" in change:
        model["vocab"] |= change
    else:
        model |= change
    assert find_cuts(content) is None
