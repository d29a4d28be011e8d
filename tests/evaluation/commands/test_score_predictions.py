"""The command: every published format, joins by --data, one sentence for each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.commands.score_predictions import percent, score

ROOT = Path(__file__).parents[3]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(capsys, task, path, data=None):
    score(task=task, predictions=path, data=data)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


KV = [
    {"id": 0, "prediction": 'The value is "u-1".', "ground_truth": "u-1"},
    {"id": 1, "prediction": "u-1", "ground_truth": "u-2"},
    {"id": 2, "prediction": "", "ground_truth": ["u-3"]},
]


def test_infinitebench(capsys, tmp_path):
    path = write(tmp_path / "preds_kv_retrieval.jsonl", KV)
    expected = {"task": "infinitebench/kv_retrieval", "score": 33.33, "samples": 3, "empty": 1}
    assert scored(capsys, "infinitebench/kv_retrieval", path) == expected
    assert scored(capsys, "infinitebench/kv_retrieval", tmp_path) == expected  # a folder with a file of that name


def test_infinitebench_under_its_other_names(capsys, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"pred": "B. fn", "label": ["fn", "B"]}, {"pred": "C", "label": ["fn", "C"]}])
    assert scored(capsys, "infinitebench/code_debug", path)["score"] == 50


def test_lveval_by_level(capsys, tmp_path):
    row = {"pred": "red house", "answers": ["red house"], "gold_ans": "red", "input": "", "all_classes": None}
    write(tmp_path / "hotpotwikiqa_mixup_16k.jsonl", [row, {**row, "pred": "house"}])
    write(tmp_path / "hotpotwikiqa_mixup_256k.jsonl", [{**row, "gold_ans": None, "pred": "house"}])
    write(tmp_path / "cmrc_mixup_16k.jsonl", [{}])
    assert scored(capsys, "lveval/hotpotwikiqa_mixup", tmp_path) == {
        "task": "lveval/hotpotwikiqa_mixup", "score": 55.56, "samples": 3, "empty": 0,
        "parts": {"16k": {"score": 50.0, "samples": 2}, "256k": {"score": 66.67, "samples": 1}},
    }  # fmt: skip
    assert scored(capsys, "lveval/hotpotwikiqa_mixup_16k", tmp_path)["score"] == 50


def test_longbench_v2(capsys, tmp_path):
    rows = [
        {"response": "The correct answer is (A)", "pred": "A", "answer": "A", "difficulty": "easy", "length": "short"},
        {"response": "I cannot say", "pred": None, "answer": "A", "difficulty": "hard", "length": "short"},
        {"pred": "A", "answer": "A", "difficulty": "hard", "length": "long"},
        {"pred": None, "answer": "A", "difficulty": "hard", "length": "long"},
    ]
    got = scored(capsys, "longbench_v2", write(tmp_path / "m.jsonl", rows))
    assert (got["score"], got["samples"], got["empty"]) == (50, 4, 1)
    assert {part: value["score"] for part, value in got["parts"].items()} == {
        "easy": 100, "short": 50, "hard": 33.33, "long": 50,
    }  # fmt: skip


def test_babilong(capsys, tmp_path):
    path = tmp_path / "qa1_16k_instruction_yes_examples_yes_post_prompt_yes_chat_template_yes_system_prompt_no.csv"
    path.write_text(",target,output,question\n0,kitchen,In the kitchen.,Where is John? \n1,garden,,Where is Ann? \n")
    got = scored(capsys, "babilong/qa1", path)
    assert (got["score"], got["empty"], got["parts"]) == (50, 1, {"16k": {"score": 50.0, "samples": 2}})
    assert scored(capsys, "babilong/qa1", tmp_path)["score"] == 50
    as_json = tmp_path / "a.json"
    as_json.write_text(json.dumps([{"target": "kitchen", "output": "the kitchen", "question": "Where?"}]))
    assert scored(capsys, "babilong/qa1", as_json)["score"] == 100


def test_mrcr_and_graphwalks_with_the_datasets_fields(capsys, tmp_path):
    row = {"answer": "Xab", "random_string_to_prepend": "X", "n_needles": 2, "response": "Xab"}
    assert scored(capsys, "mrcr/2needle", write(tmp_path / "a.jsonl", [row]))["score"] == 100
    row = {"answer_nodes": ["a", "b"], "response": "Final Answer: [a]"}
    assert scored(capsys, "graphwalks/bfs", write(tmp_path / "b.jsonl", [row]))["score"] == 66.67


OURS = [
    {"task": "infinitebench/passkey", "index": i, "input": "?", "outputs": [str(i)], "length": 9, "answer_prefix": ""}
    for i in range(3)
]


def test_our_samples_with_a_prediction_added(capsys, tmp_path):
    path = write(tmp_path / "a.jsonl", [{**row, "prediction": "it is 1"} for row in OURS])
    assert scored(capsys, "infinitebench/passkey", path)["score"] == 33.33
    with pytest.raises(UserError, match=r"line 1: the sample is of task infinitebench/passkey; score it with --task"):
        score(task="infinitebench/kv_retrieval", predictions=path)


def test_joined_by_index_by_id_and_by_order(capsys, tmp_path):
    data = write(tmp_path / "data.jsonl", OURS)
    keyed = write(tmp_path / "p.jsonl", [{"index": i, "pred": str(i)} for i in (2, 0, 1)])
    assert scored(capsys, "infinitebench/passkey", keyed, data)["score"] == 100
    ordered = write(tmp_path / "o.jsonl", [{"pred": text} for text in ("0", "7", "2")])
    assert scored(capsys, "infinitebench/passkey", ordered, data)["score"] == 66.67
    rows = [{"_id": name, "answer": "B", "difficulty": "easy", "length": "short"} for name in ("x", "y")]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    answers = [{"_id": "y", "response": "The correct answer is B"}, {"_id": "x", "response": "no"}]
    got = scored(capsys, "longbench_v2", write(tmp_path / "l.jsonl", answers), tmp_path / "data.json")
    assert got["score"] == 50


def test_joined_with_the_benchmarks_data(capsys, tmp_path):
    data = write(
        tmp_path / "passkey.jsonl", [{"id": i, "context": "", "input": "", "answer": [str(i)]} for i in (0, 1)]
    )
    path = write(tmp_path / "p.jsonl", [{"id": 1, "prediction": "1"}, {"id": 0, "prediction": "5"}])
    assert scored(capsys, "infinitebench/passkey", path, data)["score"] == 50


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"pred": "0"}], r"p\.jsonl has 1 predictions and .*data\.jsonl 3 samples; give one prediction a sample"),
        ([{"index": 0, "pred": "0"}], r"p\.jsonl has 1 predictions and .* 3 samples; 1 is the first without one"),
        ([{"index": 9, "pred": "0"}], r"p\.jsonl, line 1: .*data\.jsonl has no sample 9"),
        ([{"index": 0, "pred": ""}] * 2, r"p\.jsonl, line 2: sample 0 was answered already \(.*line 1\)"),
        ([{"index": 0, "pred": ""}, {"pred": ""}], r"line 2: index or id or _id is missing, and other lines have one"),
        (
            [{"index": i} for i in range(3)],
            r"line 1: the field 'prediction' or 'pred' or 'response' or 'output' is",
        ),
        ([{"index": i, "pred": 5} for i in range(3)], r"line 1: 'pred' is 5, and not a text"),
    ],
)
def test_mistakes_in_joined_files(rows, message, tmp_path):
    data, path = write(tmp_path / "data.jsonl", OURS), write(tmp_path / "p.jsonl", rows)
    with pytest.raises(UserError, match=message):
        score(task="infinitebench/passkey", predictions=path, data=data)


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("infinitebench/kv", [], r"infinitebench/kv: there is no such task; did you mean infinitebench/"),
        (
            "infinitebench/kv_retrieval",
            [{"id": 0, "prediction": "x"}],
            r"line 1: the field 'ground_truth' or 'label'",
        ),
        ("infinitebench/kv_retrieval", [{"ground_truth": "x"}], r"the field 'prediction' or 'pred' or"),
        (
            "infinitebench/math_find",
            [{"prediction": "5", "ground_truth": "five"}],
            r"'ground_truth' is 'five', and not",
        ),
        ("infinitebench/code_debug", [{"prediction": "5", "ground_truth": "fn"}], r"the field 'options' is missing"),
        ("lveval/cmrc_mixup", [{"pred": "x"}], r"the field 'answers' is missing \(it has pred\)"),
        ("longbench_v2", [{"response": "x", "answer": "a"}], r"'answer' is 'a', and not one of the letters"),
        ("babilong/qa1", [{"output": "x", "target": "y"}], r"the field 'question' is missing"),
        ("mrcr/2needle", [{"response": "x", "answer": "y"}], r"the field 'random_string_to_prepend' is missing"),
    ],
)
def test_mistakes(task, rows, message, tmp_path):
    with pytest.raises(UserError, match=message):
        score(task=task, predictions=write(tmp_path / "p.jsonl", rows))


def test_other_samples_as_data(tmp_path):
    data = write(tmp_path / "data.jsonl", OURS)
    with pytest.raises(UserError, match=r"its samples are of task infinitebench/passkey; score them with --task"):
        score(task="infinitebench/kv_retrieval", predictions=data, data=data)


def test_percent_has_two_decimals():
    assert [percent(scores) for scores in ([], [1], [0, 0, 1], [0.5, 1])] == [0, 100, 33.33, 75]


def test_from_the_command_line(tmp_path):
    path = write(tmp_path / "preds_kv_retrieval.jsonl", KV)
    words = [sys.executable, "tools/evaluate.py", "score", "--predictions", str(path), "--task"]
    done = subprocess.run([*words, "infinitebench/kv_retrieval"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["score"] == 33.33
    assert "1 of 3 predictions are empty" in done.stderr and "empty" not in done.stdout.replace('"empty"', "")
