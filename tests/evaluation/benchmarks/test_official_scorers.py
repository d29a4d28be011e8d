"""Official scorers beside ours: 2,000 random predictions a task, equal to the last bit; and published predictions."""

from __future__ import annotations

import json
import random
import uuid
import warnings

import pytest

from megatron_ultralong.evaluation.benchmarks import babilong, longbench_v2
from megatron_ultralong.evaluation.benchmarks.infinitebench import infinitebench_scoring
from megatron_ultralong.evaluation.benchmarks.lveval import lveval_scoring
from megatron_ultralong.evaluation.commands.score_predictions import summary
from megatron_ultralong.evaluation.registry import find_task
from megatron_ultralong.evaluation.samples import Sample
from tests.evaluation.benchmarks import noise, official

COUNT = 2000
ENGLISH = "the a of Paris king John's 1984 well-known river, and to was red. Blue theatre an old-town 3.5 it".split()
CHINESE = [*"北京 大学 的 是 二十 年 ， 。 《红楼梦》 一定 abc A 可以 人 12 —".split(" "), " "]


def sample(outputs: list[str], **extra: object) -> Sample:
    return Sample(
        task="t", index=0, input="", outputs=tuple(outputs), length=0, max_new_tokens=0, prompt_tokens=0, extra=extra
    )


def infinitebench_label(rng: random.Random, task: str) -> object:
    """A label such as the published prediction files have."""
    return {
        "passkey": lambda: rng.choice([str(rng.randint(0, 99999)), [str(rng.randint(10, 99))]]),
        "number_string": lambda: [str(rng.randint(0, 9999999999))],
        "kv_retrieval": lambda: str(uuid.UUID(int=rng.getrandbits(128))),
        "longbook_sum_eng": lambda: [noise.sentence(rng, [*ENGLISH, "\n"], 30) for _ in range(rng.randint(1, 2))],
        "longbook_choice_eng": lambda: [noise.sentence(rng, ENGLISH, 4), rng.choice("ABCD")],
        "longbook_qa_eng": lambda: [noise.sentence(rng, ENGLISH, 6) for _ in range(rng.randint(1, 3))],
        "longbook_qa_chn": lambda: [noise.sentence(rng, CHINESE, 6) for _ in range(rng.randint(1, 3))],
        "longdialogue_qa_eng": lambda: [rng.choice(["JOHN", "O'HARA", "Ann", "DR WHO"]), "OTHER"],
        "math_find": lambda: rng.choice([rng.randint(0, 99), [rng.randint(0, 99)], 3.5, [rng.randint(0, 99) / 2]]),
        "math_calc": lambda: rng.choice([lambda x: x, lambda x: [x]])([rng.randint(0, 20) for _ in range(5)]),
        "code_run": lambda: rng.choice([rng.randint(-20, 20), [rng.randint(-20, 20)]]),
        "code_debug": lambda: [rng.choice(["_init", "Process.exe", "print_color"]), rng.choice("ABCD")],
    }[task]()


@pytest.mark.parametrize("task", infinitebench_scoring.SCORERS)
def test_infinitebench(task, tmp_path):
    theirs, rng = official.infinitebench(), random.Random(task)
    rows = []
    for number in range(COUNT):
        label = infinitebench_label(rng, task)
        flat = label[0] if isinstance(label, list) and isinstance(label[0], list) else label
        references = list(map(str, flat if isinstance(flat, list) else [flat]))
        references.append(" ".join(references))
        rows.append({"id": number, "prediction": noise.prediction(rng, references), "ground_truth": label})
    path = tmp_path / f"preds_{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, raised, right = find_task(f"infinitebench/{task}"), 0, 0.0
    for row, (prediction, ours) in zip(rows, found.read(path), strict=True):
        got = found.score(prediction, ours)
        try:
            expected = theirs["get_score_one"](row["prediction"], row["ground_truth"], task, "any")
        except ValueError:  # a decimal for an integer
            raised += 1
            assert task == "math_find" and got in (0.0, 1.0)
            continue
        assert got == expected, row
        right += got
    assert right > 0 and raised < COUNT / 2


@pytest.mark.parametrize("name", lveval_scoring.SCORERS)
def test_lveval(name, tmp_path):
    theirs, rng = official.lveval(), random.Random(name)
    words = ENGLISH if name.endswith("_en") or name.startswith(("hotpot", "loogle", "multifieldqa_en")) else CHINESE
    rows = []
    while len(rows) < COUNT:
        answers = [noise.sentence(rng, words, 8) for _ in range(rng.randint(1, 2))]
        keywords = rng.choice([None, "", noise.sentence(rng, words, 3), rng.choice(answers)])
        prediction = noise.prediction(rng, [*answers, " ".join(answers), *words])
        rows.append({"pred": prediction, "answers": answers, "gold_ans": keywords})
    path = tmp_path / f"{name}_16k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, divided, right = find_task(f"lveval/{name}"), 0, 0.0
    for row, (prediction, ours) in zip(rows, found.read(path), strict=True):
        got = found.score(prediction, ours)
        try:
            _, each = theirs["scorer"](f"{name}_16k", [row["pred"]], [row["answers"]], [row["gold_ans"]])
        except ZeroDivisionError:  # keywords without a token
            divided += 1
            continue
        assert got == next(iter(each.values()))[0], row
        right += got
    assert right > 0 and divided < COUNT / 5


@pytest.mark.parametrize("task", babilong.LABELS)
def test_babilong(task):
    theirs, rng = official.babilong(), random.Random(task)
    labels = babilong.LABELS[task]
    assert sorted(labels) == sorted(theirs["TASK_LABELS"][task])
    right = 0.0
    for _ in range(COUNT):
        target = ",".join(rng.sample(labels, 2)) if task == "qa8" and rng.random() < 0.4 else rng.choice(labels)
        question = rng.choice(["Where is John?", f"Was it in the {rng.choice(labels)}?", ""])
        prediction = noise.prediction(rng, [target, *labels])
        got = babilong.score(prediction, sample([target], question=question), labels)
        assert got == theirs["compare_answers"](target, prediction, question, labels), (target, prediction, question)
        right += got
    assert right > 0


def test_longbench_v2():
    theirs, rng = official.longbench(), random.Random(0)
    found = [noise.prediction(rng, ["The correct answer is (A)", "The **correct** answer is B"]) for _ in range(COUNT)]
    ours = [longbench_v2.letter(each) for each in found]
    assert ours == [theirs["extract_answer"](each) for each in found]
    assert {None, "A", "B"} <= set(ours)


def test_babilong_on_its_published_predictions():
    """The CSV files in the clone's babilong_evals/."""
    theirs, compared = official.babilong(), 0
    for path in sorted(official.clone("BABILONG").glob("babilong_evals/*/*/*.csv")):
        name = path.stem.split("_")[0]
        found = find_task(f"babilong/{name}")
        for prediction, ours in found.read(path):
            labels = babilong.LABELS[name]
            expected = theirs["compare_answers"](ours.outputs[0], prediction, ours.extra["question"], labels)
            assert found.score(prediction, ours) == expected
            compared += 1
        assert ours.extra["parts"] == [path.stem.split("_")[1]]
    assert compared > 10_000


def test_infinitebench_on_its_published_predictions():
    """Every file of its results/ that its own script can score, except GPT-4's math_calc."""
    theirs, compared = official.infinitebench(), 0
    for path in sorted(official.clone("INFINITEBENCH").glob("results/*/preds_*.jsonl")):
        task = path.stem.removeprefix("preds_")
        if task not in infinitebench_scoring.SCORERS or (path.parent.name, task) == ("gpt4", "math_calc"):
            continue
        try:
            rows = list(theirs["iter_jsonl"](path))
            labels, predictions = theirs["get_labels"](rows), theirs["get_preds"](rows, task)
            expected = theirs["get_score"](labels, predictions, task, path.parent.name)
        except (json.JSONDecodeError, ValueError):  # a torn line, a decimal for an integer
            continue
        found = find_task(f"infinitebench/{task}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = summary(found, found.read(path))
        assert got["score"] == round(100 * expected, 2), path
        compared += 1
    assert compared > 60
