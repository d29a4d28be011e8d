"""InfiniteBench's scorers by their definitions: src/compute_scores.py at 88b3daa, the line beside each row."""

import pytest

from megatron_ultralong.evaluation.benchmarks.infinitebench.infinitebench_scoring import SCORERS, number
from tests.evaluation.benchmarks import official
from tests.evaluation.benchmarks.test_official_scorers import sample

KV = "5e6b7b90-710d-4953-9b18-3e96b2cadbf2"
CASES = [
    # task, prediction, labels, score, line of the definition
    ("passkey", "", ["71432"], 0, 129),
    ("passkey", "The pass key is 71432.", ["71432"], 1, 129),
    ("passkey", "71432 or 5", ["71432"], 1, 129),
    ("passkey", "5 or 71432", ["71432"], 0, 129),
    ("passkey", "7,1432", ["71432"], 0, 129),
    ("passkey", "71432", ["71432", "5"], 1, 148),  # the first label counts
    ("passkey", "5", ["71432", "5"], 0, 148),
    ("passkey", "٧71432", ["71432"], 1, 123),  # an Arabic digit is no digit of [0-9]
    ("number_string", "00123", ["123"], 0, 155),  # as texts, not numbers
    ("number_string", "-123", ["123"], 1, 155),
    ("kv_retrieval", "", [KV], 0, 143),
    ("kv_retrieval", f'The value is "{KV}".', [KV], 1, 143),
    ("kv_retrieval", f"{{{KV}}}", [KV], 1, 143),
    ("kv_retrieval", KV[:-1], [KV], 0, 143),
    ("kv_retrieval", KV.upper(), [KV], 0, 143),
    ("kv_retrieval", f"x{KV}", [KV], 0, 143),
    ("kv_retrieval", f"a\x1c{KV}\x1f", [KV], 1, 142),  # control characters that Python splits at
    ("kv_retrieval", f"({KV})", [KV], 0, 143),  # brackets stay
    ("longdialogue_qa_eng", "", ["ANN"], 0, 244),
    ("longdialogue_qa_eng", "Ann.", ["ANN"], 1, 243),
    ("longdialogue_qa_eng", "It is ann, of course", ["ANN"], 1, 243),
    ("longdialogue_qa_eng", "Ann", ["Ann"], 0, 243),  # only words are upper-cased
    ("longdialogue_qa_eng", "BOB", ["ANN", "BOB"], 0, 238),  # only the first label counts
    ("longdialogue_qa_eng", "DR WHO", ["DR WHO"], 0, 244),  # a name of two words is never a word
    ("longbook_choice_eng", "", ["To go", "B"], 0, 251),
    ("longbook_choice_eng", " \n", ["To go", "B"], 0, 249),
    ("longbook_choice_eng", "B", ["To go", "B"], 1, 253),
    ("longbook_choice_eng", "Because", ["To go", "B"], 1, 253),  # the first letter
    ("longbook_choice_eng", "Answer: B", ["To go", "B"], 0, 253),  # the first letter, A
    ("longbook_choice_eng", "To go", ["To go", "B"], 1, 254),
    ("longbook_choice_eng", "to go", ["To go", "B"], 0, 254),
    ("longbook_choice_eng", "My answer is: B.", ["To go", "B"], 1, 277),
    ("longbook_choice_eng", "My answer is:B", ["To go", "B"], 0, 274),  # one character after the phrase is skipped
    ("longbook_choice_eng", "My answer is:", ["To go", "B"], 0, 272),
    ("longbook_choice_eng", "The answer is To go", ["To go", "B"], 1, 276),
    ("longbook_choice_eng", "the option is C", ["To go", "B"], 0, 278),
    ("longbook_choice_eng", "I say (B) no B", ["To go", "B"], 1, 284),
    ("longbook_choice_eng", "I say AB B", ["To go", "B"], 0, 283),  # AB is in "ABCD"
    ("longbook_choice_eng", "No idea", ["To go", "B"], 0, 285),
    ("longbook_qa_eng", "", ["a red house"], 0, 289),
    ("longbook_qa_eng", "Red house!", ["x", "a red house"], 1, 76),
    ("longbook_qa_eng", "house", ["a red house"], 2 / 3, 59),
    ("longbook_qa_chn", "", ["北京"], 0, 303),
    ("longbook_qa_chn", "北京。", ["上海", "北京"], 1, 98),
    ("longbook_qa_chn", "北", ["北京"], 2 / 3, 98),
    ("math_find", "", ["94"], 0, 223),
    ("math_find", "94.", ["94"], 1, 225),
    ("math_find", "-94", ["94"], 1, 221),  # no sign
    ("math_find", "1 94", ["94"], 0, 221),
    ("math_find", "3.5", ["3.5"], 1, 232),
    ("math_find", "4", ["4.0"], 1, 232),
    ("math_find", "94.0", ["94"], 1, 225),  # theirs raises; here a number is compared as it is
    ("math_find", "94.5", ["94"], 0, 225),  # the same
    ("math_find", "9" * 5000, ["94"], 0, 225),  # the same
    ("math_calc", "", ["1", "2"], 0, 324),
    ("math_calc", "[1, 2]", ["1", "2"], 1, 327),
    ("math_calc", "1 3", ["1", "2"], 0.5, 329),
    ("math_calc", "3 2", ["1", "2"], 0, 329),
    ("math_calc", "01, 2, 99", ["1", "2"], 1, 315),
    ("math_calc", "1", ["-1", "2"], 0, 312),  # an answer has no sign, so a negative value ends it
    ("math_calc", "1 " + "9" * 5000, ["1", "2"], 0.5, 315),  # theirs raises
    ("code_run", "", ["-7"], 0, 169),
    ("code_run", "It returns -7.", ["-7"], 1, 172),
    ("code_run", "-7 it is", ["-7"], 0, 172),
    ("code_run", "`-7`", ["-7"], 1, 166),
    ("code_run", "-7.0", ["-7"], 0, 166),  # "-7 0"
    ("code_run", "- 7", ["-7"], 0, 172),
    ("code_run", "+7", ["7"], 1, 172),
    ("code_run", "1_0", ["10"], 1, 172),  # as Python reads integers
    ("code_debug", "", ["fn", "B"], 0, 212),
    ("code_debug", "B. fn", ["fn", "B"], 1, 184),
    ("code_debug", "B", ["fn", "B"], 0, 212),  # a letter alone is wrong
    ("code_debug", "A. B.", ["fn", "B"], 0, 184),
    ("code_debug", "The answer is: fn", ["fn", "B"], 1, 209),
    ("code_debug", "It is: B", ["fn", "B"], 1, 209),
    ("code_debug", "It is:B", ["fn", "B"], 0, 207),
    ("code_debug", "The correct option is: B", ["fn", "B"], 1, 196),  # "option" has gone, "is:" is found
    ("code_debug", "answer: **B**", ["fn", "B"], 1, 196),
    ("code_debug", "answer:", ["fn", "B"], 0, 205),
]


@pytest.mark.parametrize(("task", "prediction", "labels", "score", "line"), CASES)
def test_edge(task, prediction, labels, score, line):
    assert SCORERS[task](prediction, sample(labels)) == score, f"src/compute_scores.py:{line}"


def test_edges_are_theirs():
    theirs, raised = official.infinitebench(), 0
    for task, prediction, labels, score, line in CASES:
        label = [number(label) for label in labels] if task in ("math_find", "math_calc", "code_run") else labels
        try:
            got = theirs["get_score_one"](prediction, label[0] if task == "kv_retrieval" else label, task, "any")
        except ValueError:
            raised += 1
            assert task.startswith("math")
            continue
        assert got == score, (task, prediction, line)
    assert raised == 4


@pytest.mark.parametrize("task", SCORERS)
@pytest.mark.parametrize("prediction", ["", "\x00\x07\n", "3.7", "9" * 5000, "A", "。", "x " * 3000])
@pytest.mark.parametrize("labels", [["7"], ["x", "A"], ["3.5"], ["true"]])
def test_no_prediction_and_no_label_makes_a_traceback(task, prediction, labels):
    assert 0 <= SCORERS[task](prediction, sample(labels)) <= 1


@pytest.mark.parametrize("task", SCORERS)
def test_a_copier_is_right(task):
    labels = {"longbook_choice_eng": ["x", "B"], "code_debug": ["fn", "B"], "math_calc": ["1", "2"]}.get(task, ["7"])
    labels = ["北京"] if task == "longbook_qa_chn" else labels
    copied = {"longbook_choice_eng": "B", "code_debug": "B. fn", "math_calc": "[1, 2]"}.get(task, labels[0])
    assert SCORERS[task](copied, sample(labels)) == 1


def test_a_guesser_of_letters_is_right_once_in_four():
    for task, said in (("longbook_choice_eng", "{}"), ("code_debug", "{}.")):
        assert sum(SCORERS[task](said.format(letter), sample(["fn", "C"])) for letter in "ABCD") == 1


def test_number_reads_what_json_writes():
    assert [number(text) for text in ("5", "-5", "5.5", "1e3", "x", "True")] == [5, -5, 5.5, 1000.0, None, None]
