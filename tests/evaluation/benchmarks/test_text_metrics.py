"""Shared metrics against their definitions, and against the packages that define two of them."""

import random
import subprocess
import sys

import pytest

from megatron_ultralong.evaluation.benchmarks import text_metrics
from tests.evaluation.benchmarks.test_official_scorers import CHINESE, ENGLISH


@pytest.mark.parametrize(
    ("text", "tokens"),
    [  # InfiniteBench, src/compute_scores.py:15-31 at 88b3daa
        ("", []),
        ("The  Cat's\tA-hat, an Öl.", ["cats", "ahat", "öl"]),  # articles go after punctuation: "A-hat" keeps its a
        ("a the an", []),
        ("theatre", ["theatre"]),
        ("U.S.A.", ["usa"]),
        ("北京 the", ["北京"]),
        ("a。b", ["。b"]),  # ASCII's punctuation alone; the full stop is no word character
        ("x\x00y", ["x\x00y"]),
    ],
)
def test_english_tokens(text, tokens):
    assert text_metrics.english_tokens(text) == tokens


@pytest.mark.parametrize(
    ("text", "left"),
    [  # InfiniteBench, src/compute_scores.py:34-49; LV-Eval, metrics.py:38-53 at 63e7ae9
        ("", ""),
        ("《红楼梦》，A b。", "《红楼梦ab"),  # the left mark is on no list
        ("１．２", "１．２"),  # nor is a full-width full stop
        ("a\u3000b", "ab"),
        ("——…『』", ""),
    ],
)
def test_chinese_text(text, left):
    assert text_metrics.chinese_text(text) == left


def test_chinese_punctuation_is_asciis_and_74_characters():
    assert len(set(text_metrics.CHINESE_PUNCTUATION)) == len(text_metrics.CHINESE_PUNCTUATION) == 32 + 74


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [  # InfiniteBench, src/compute_scores.py:52-60
        ("", "x", 0.0),
        ("x", "", 0.0),
        ("", "", 0.0),
        ("red blue", "Red, blue!", 1.0),
        ("red red", "red", 2 * 0.5 * 1 / 1.5),
        ("red green", "red blue", 0.5),
    ],
)
def test_english_f1(prediction, reference, expected):
    assert text_metrics.english_f1(prediction, reference) == expected


def test_character_f1_counts_repetitions():
    assert text_metrics.character_f1("北北京", "北京") == 2 * (2 / 3) * 1 / (2 / 3 + 1)


def test_jieba_cuts_as_with_its_own_dictionary():
    import jieba

    text = "我来到北京清华大学，2024年the big红楼梦."
    assert text_metrics.cut_words(text) == list(jieba.cut(text, cut_all=False))
    assert text_metrics.chinese_words("我来到 北京。") == ["我", "来到", "北京"]


@pytest.mark.parametrize("words", [ENGLISH, CHINESE])
def test_rouge_l_is_that_of_the_package(words):
    import rouge

    rng, theirs = random.Random(len(words)), rouge.Rouge()
    plain = [word.replace(".", "") for word in words if word.replace(".", "").strip()]
    for _ in range(300):
        prediction, reference = ([rng.choice(plain) for _ in range(rng.randint(1, 15))] for _ in range(2))
        expected = theirs.get_scores([" ".join(prediction)], [" ".join(reference)], avg=True)["rouge-l"]["f"]
        assert text_metrics.rouge_l_distinct(prediction, reference) == expected


def test_rouge_l_of_long_answers_does_not_overrun_the_stack():
    words = [str(number) for number in range(1500)]
    assert text_metrics.rouge_l_distinct(words, words) == pytest.approx(1.0, abs=1e-8)
    assert text_metrics.rouge_l_distinct([], words) == text_metrics.rouge_l_distinct(words, []) == 0.0


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [  # rouge-score 0.1.2, rouge_scorer.py, rougeLsum; InfiniteBench, src/compute_scores.py:302-309
        ("", ["x"], 0.0),
        ("a b\nc d", ["c d\na b"], 1.0),  # lines are sentences: their order is free
        ("a b c d", ["c d a b"], 0.5),
        ("x", ["y", "x"], 1.0),
        ("中文", ["中文"], 0.0),  # no token in it
    ],
)
def test_rouge_lsum(prediction, references, expected):
    assert text_metrics.rouge_lsum(prediction, references) == expected


@pytest.mark.parametrize(
    ("package", "call"), [("jieba", "chinese_words('x')"), ("rouge_score", "rouge_lsum('x', ['x'])")]
)
def test_a_missing_package_is_one_sentence(package, call):
    code = f"""
import sys
sys.modules[{package!r}] = None
from megatron_ultralong.evaluation.benchmarks import text_metrics
from megatron_ultralong.errors import UserError
try:
    text_metrics.{call}
except UserError as error:
    assert "missing; pip install 'megatron-ultralong[eval]'" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)
