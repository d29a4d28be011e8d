"""LV-Eval's scorers by their definitions: metrics.py at 63e7ae9, the line beside each row."""

import pytest

from megatron_ultralong.evaluation.benchmarks.lveval.lveval_scoring import SCORERS
from tests.evaluation.benchmarks import official
from tests.evaluation.benchmarks.test_official_scorers import sample

CASES = [
    # set, prediction, answers, keywords, score, line of the definition
    ("factrecall_en", "", ["Red House"], None, 0, 85),
    ("factrecall_en", "the red house", ["Red House"], None, 1, 96),
    ("factrecall_en", "red", ["blue", "red"], None, 0, 85),  # the first answer alone (evaluation.py:32)
    ("factrecall_en", "red", ["red house"], "house", 2 / 3, 96),  # no gate
    ("hotpotwikiqa_mixup", "", ["red house"], "red", 0, 122),
    ("hotpotwikiqa_mixup", "house", ["red house"], "red", 0, 122),  # no keyword: under the gate
    ("hotpotwikiqa_mixup", "red", ["red house"], "red one two three four", 2 / 3, 122),  # 1 of 5 is not under 0.2
    ("hotpotwikiqa_mixup", "red", ["red house"], "red one two three four five", 0, 122),
    ("hotpotwikiqa_mixup", "house", ["red house"], None, 2 / 3, 115),  # without keywords no gate
    ("hotpotwikiqa_mixup", "house", ["red house"], "", 2 / 3, 115),
    ("hotpotwikiqa_mixup", "who is", ["who is he"], "who is", 0, 119),  # frequent words are not counted as had
    (
        "hotpotwikiqa_mixup",
        "red and to",
        ["red of"],
        "red",
        2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2),
        124,
    ),  # F1 has them
    ("hotpotwikiqa_mixup", "house", ["house"], "the a", 1, 121),  # theirs divides by zero; here no gate
    ("loogle_SD_mixup", "RED, house.", ["red house"], "House", 1, 124),
    ("factrecall_zh", "", ["北京"], None, 0, 85),
    ("factrecall_zh", "北京大学。", ["北京大学"], None, 1, 133),
    ("cmrc_mixup", "", ["北京"], None, 0, 165),
    ("cmrc_mixup", "北京", ["北京"], None, 1, 156),  # keywords default to the answer
    ("cmrc_mixup", "北京", ["北京 上海 广州"], None, 0, 165),  # one of three is under 0.4
    ("cmrc_mixup", "北京 上海", ["北京 上海 广州"], None, 0.8, 167),
    ("cmrc_mixup", "北京", ["北京 上海 广州"], "北京", 0.5, 167),
    ("cmrc_mixup", "的 是", ["的 是"], None, 0, 162),  # nothing but frequent words
    ("cmrc_mixup", "x", ["。"], None, 0, 164),  # theirs divides by zero
    ("dureader_mixup", "", ["北京"], None, 0, 58),
    ("dureader_mixup", "北京 上海", ["北京 上海"], None, 1, 59),
    ("dureader_mixup", "的 了", ["北京"], None, 0, 74),
    ("dureader_mixup", "北京 北京", ["北京"], None, 1, 59),  # without repetition
]


@pytest.mark.parametrize(("name", "prediction", "answers", "keywords", "score", "line"), CASES)
def test_edge(name, prediction, answers, keywords, score, line):
    got = SCORERS[name](prediction, sample(answers, keywords=keywords))
    assert got == pytest.approx(score, abs=1e-8), f"metrics.py:{line}"


def test_edges_are_theirs():
    theirs, divided = official.lveval(), 0
    for name, prediction, answers, keywords, score, line in CASES:
        try:
            _, each = theirs["scorer"](f"{name}_16k", [prediction], [answers], [keywords])
        except ZeroDivisionError:
            divided += 1
            continue
        assert next(iter(each.values()))[0] == pytest.approx(score, abs=1e-8), (name, prediction, line)
    assert divided == 2


@pytest.mark.parametrize("name", SCORERS)
def test_a_copier_is_right(name):
    answer = "北京大学的红楼梦" if SCORERS[name].__name__.startswith("chinese") else "The red house of Ann"
    assert SCORERS[name](answer, sample([answer], keywords=answer)) == pytest.approx(1, abs=1e-8)
    assert SCORERS[name]("\x00\x1f\n", sample([answer], keywords=answer)) == 0
