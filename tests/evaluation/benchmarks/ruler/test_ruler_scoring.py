"""RULER's scores from their definition, and beside the official functions where a clone is on disk."""

import ast
import json
import os
import random
import re
import string
from pathlib import Path

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.ruler.ruler_scoring import clean, match_all, match_part, read_predictions
from megatron_ultralong.evaluation.registry import family_tasks, find_task
from megatron_ultralong.evaluation.samples import Sample

ALL, PART, POST = "eval/synthetic/constants.py:28-30", "eval/synthetic/constants.py:24-26", "eval/evaluate.py:50-58"
LONG = "x " * 20_000


def sample(references):
    return Sample(task="", index=0, input="", outputs=tuple(references), length=0, max_new_tokens=0, prompt_tokens=0)


@pytest.mark.parametrize(
    "prediction, references, every, some, source",
    [
        ("", ["7"], 0, 0, ALL),
        ("", [""], 1, 1, ALL),  # an empty reference occurs in everything
        ("7", ["7"], 1, 1, ALL),
        ("17", ["7"], 1, 1, ALL),  # a substring, not a word
        ("1 2 3", ["1", "2", "3", "4"], 0.75, 1, ALL),
        ("4, 3, 2 and 1", ["1", "2", "3", "4"], 1, 1, ALL),  # in any order
        ("1234", ["1", "2", "3", "4"], 1, 1, ALL),
        ("one", ["1", "2"], 0, 0, PART),
        ("one", ["1", "one"], 0.5, 1, PART),
        ("yes", ["yes", "yes"], 1, 1, ALL),  # a reference given twice counts twice
        ("no", ["yes", "yes", "no"], 1 / 3, 1, ALL),
        ("BRAVE-Otter", ["brave-otter"], 1, 1, ALL),
        ("straße", ["STRASSE"], 0, 0, ALL),  # lower(), not casefold()
        ("İstanbul", ["i̇stanbul"], 1, 1, ALL),  # İ becomes two characters
        ("答案是 四十二。", ["四十二"], 1, 1, ALL),
        ("四 十 二", ["四十二"], 0, 0, ALL),
        ("It's 7.", ["7."], 1, 1, ALL),
        ("It's 7", ["7."], 0, 0, ALL),
        ("a\x00b", ["a\nb"], 1, 1, POST),  # a control character is a line break
        ("a\tb", ["a b"], 0, 0, POST),
        ("a\tb", ["a\tb"], 0, 0, POST),  # also a tab: a reference with one never occurs
        ("\x00 7 \x1f", ["\n"], 0, 0, POST),  # those at the ends are gone
        ("a\x7fb", ["a\x7fb"], 1, 1, POST),  # DEL is none of them
        (" 7 ", [" 7 "], 0, 0, POST),  # stripped; the reference is not
        (LONG + "7", ["7"], 1, 1, ALL),  # however long: the report says so
        ("7" * 3, ["77777"], 0, 0, ALL),
        ("None", [], 0, 0, ALL),
    ],
)
def test_edge_cases(prediction, references, every, some, source):
    assert match_all(prediction, sample(references)) == every, source
    assert match_part(prediction, sample(references)) == some, source


@pytest.mark.parametrize(
    "prediction, expected",
    [("", ""), (" \n a \r\n", "a"), ("\x01a\x02\x03b\x04", "a\n\nb"), ("\u3000a\u2028", "a"), ("a\x1f\x20", "a")],
)
def test_clean(prediction, expected):
    assert clean(prediction) == expected  # POST


def test_questions_take_any_reference_and_all_others_the_share():
    for task in family_tasks("ruler"):
        assert task.score("1", sample(["1", "2"])) == (1 if task.name in ("ruler/qa_1", "ruler/qa_2") else 0.5)


def lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_predictions_in_rulers_own_files(tmp_path):
    path = lines(
        tmp_path / "vt.jsonl",
        {"index": 812, "input": "Which?", "outputs": ["A", "B"], "pred": "A", "others": {}, "length": 4096},
        "",
        {"index": 5, "input": "Which?", "output": "C", "pred": " c ", "others": {}},
    )
    read = find_task("ruler/vt").read
    found = list(read(path))
    assert [(prediction, each.outputs, each.index, each.length) for prediction, each in found] == [
        ("A", ("A", "B"), 0, 4096),
        (" c ", ("C",), 2, 0),
    ]


def test_a_null_as_the_first_reference_makes_the_task_zero(tmp_path):
    path = lines(tmp_path / "vt.jsonl", {"outputs": [None], "pred": "A"}, {"outputs": ["A"], "pred": "A"})
    found = list(read_predictions(path, "ruler/vt"))
    assert [match_all(prediction, each) for prediction, each in found] == [0, 0]  # evaluate.py:98-101


@pytest.mark.parametrize(
    "row, said",
    [("{", "line 1: it is not JSON"), ({"outputs": ["A"]}, "'pred'"), ({"pred": 1}, "'pred'"), ("[]", "'pred'"),
     ({"pred": "A", "outputs": "A"}, "'outputs' is str")],
)  # fmt: skip
def test_broken_predictions_are_named(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        list(read_predictions(lines(tmp_path / "vt.jsonl", row), "ruler/vt"))


def test_missing_predictions_are_named(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        list(read_predictions(tmp_path / "none.jsonl", "ruler/vt"))


def functions(path, *names):
    """Functions of a file, which is not imported: it parses a command line and wants packages."""
    found = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") in names]
    space = {"re": re}
    exec(compile(ast.Module(found, []), str(path), "exec"), space)
    return [space[name] for name in names]


def noisy(rng, references):
    """A prediction with some of the references in it, whole, torn or in another case, among other things."""
    pieces = [rng.choice(string.printable + "é漢ß\x00\x1f\x7f") * rng.randint(0, 3) for _ in range(rng.randint(0, 8))]
    for reference in references:
        if rng.random() < 0.6:
            torn = reference[: rng.randint(0, len(reference))] if rng.random() < 0.3 else reference
            pieces.append(rng.choice([torn, torn.upper(), torn.swapcase(), f" {torn}.", torn.replace(" ", "\t")]))
    rng.shuffle(pieces)
    return rng.choice(["", " ", "\n", ", "]).join(pieces)


@pytest.mark.parametrize("name", [task.name for task in family_tasks("ruler")])
def test_scores_are_the_official_ones(name):
    clone = os.environ.get("OFFICIAL_RULER")
    if not clone:
        pytest.skip("OFFICIAL_RULER names no clone of NVIDIA/RULER")
    every, some = functions(
        Path(clone) / "scripts/eval/synthetic/constants.py", "string_match_all", "string_match_part"
    )
    (post,) = functions(Path(clone) / "scripts/eval/evaluate.py", "postprocess_pred")
    official = some if name.startswith("ruler/qa") else every
    task, rng = find_task(name), random.Random(name)
    rows = []
    for _ in range(2000):
        letters = string.ascii_letters + string.digits + "éß İ漢-. "
        references = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 10))]
        rows.append((noisy(rng, references), references))
    for prediction, references in rows:
        ours = task.score(prediction, sample(references))
        assert round(100 * ours, 2) == official([post(prediction, {})], [references])
    ours = sum(task.score(prediction, sample(references)) for prediction, references in rows) / len(rows) * 100
    theirs = official([post(prediction, {}) for prediction, _ in rows], [references for _, references in rows])
    assert round(ours, 2) == theirs
