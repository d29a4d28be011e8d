"""Small files in the formats that benchmarks publish their data in, a folder a family, made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.benchmarks import babilong
from megatron_ultralong.evaluation.benchmarks.infinitebench import infinitebench_scoring
from megatron_ultralong.evaluation.benchmarks.lveval import lveval_scoring

PASSAGE = "The rain had stopped before noon, and the road to Müller's mill was dry again (by three o'clock). "
CHINESE = "雨在中午以前就停了，到下午三点，去磨坊的路又干了。"
WORDS = 60
"""Passages a text: about 1,800 tokens of the tests' tokenizer."""


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def infinitebench(folder: Path) -> Path:
    """TASK.jsonl, as on the Hub: labels are lists."""
    half = PASSAGE * (WORDS // 2)
    plain: dict[str, dict[str, Any]] = {
        "passkey": {"context": f"{half}The pass key is 71432. {half}", "input": "What is the pass key?"},
        "number_string": {"context": f"{half}The digits are 00123. {half}", "input": "What are the digits?"},
        "kv_retrieval": {
            "context": json.dumps({f"key{i}": f"value{i}" for i in range(100)}),
            "input": 'Key: "key50"\nThe value is: ',
        },
        "longbook_sum_eng": {"context": half, "input": ""},
        "longbook_choice_eng": {"context": half, "input": "What stopped?", "options": ["Snow", "Rain", "Wind", "Time"]},
        "longbook_qa_eng": {"context": half, "input": "What stopped?"},
        "longbook_qa_chn": {"context": CHINESE * 30, "input": "什么停了？"},
        "longdialogue_qa_eng": {"context": "ANN: No.\n$$MASK$$: Yes.\n" * 60, "input": ""},
        "math_find": {"context": str(list(range(300))), "input": "The largest number of the list is: "},
        "math_calc": {"context": " + ".join(map(str, range(200))), "input": ""},
        "code_run": {"context": "def func_1(x):\n    return x + 1\n" * 30, "input": "What does func_1(-4) return?"},
        "code_debug": {"context": half, "input": "", "options": ["f", "g", "h", "k"]},
    }
    answers: dict[str, Any] = {
        "passkey": ["71432"], "number_string": ["00123"], "kv_retrieval": ["value50"], "code_run": [-3],
        "longbook_choice_eng": ["Rain"], "longbook_qa_eng": ["the rain", "rain"], "longbook_qa_chn": ["雨"],
        "longdialogue_qa_eng": ["BOB"], "math_find": [299], "math_calc": [0, 1, 3], "code_debug": ["g"],
        "longbook_sum_eng": ["It rained."],
    }  # fmt: skip
    for task in infinitebench_scoring.SCORERS:
        row = {"options": [], **plain[task], "answer": answers[task]}
        write(folder / f"{task}.jsonl", [{"id": 0, **row}, {"id": 1, **row}])
    return folder


def lveval(folder: Path) -> Path:
    """SET_LEVEL.jsonl of two levels."""
    for name in lveval_scoring.SCORERS:
        chinese = lveval_scoring.SCORERS[name].__name__.startswith("chinese")
        row = {
            "input": "什么停了？" if chinese else "What stopped?",
            "context": CHINESE * WORDS if chinese else PASSAGE * WORDS,
            "answers": ["北京大学"] if chinese else ["The rain stopped"],
            "answer_keywords": "北京大学" if chinese else "rain",
            "length": 1000,
            "dataset": name,
        }
        for level in ("16k", "32k"):
            write(folder / f"{name}_{level}.jsonl", [row, row])
    return folder


def longbench_v2(folder: Path) -> Path:
    """data.json: one array."""
    row = {
        "_id": "66f", "domain": "d", "difficulty": "easy", "length": "short", "question": "What stopped?",
        "choice_A": "Snow", "choice_B": "Rain", "choice_C": "Wind", "choice_D": "Time", "answer": "B",
        "context": PASSAGE * WORDS,
    }  # fmt: skip
    folder.mkdir(parents=True)
    rows = [row, {**row, "_id": "66a", "difficulty": "hard"}]
    (folder / "data.json").write_text(json.dumps(rows))
    return folder


def babilong_files(folder: Path) -> Path:
    """qaN/LENGTH.json: one array each."""
    for name, labels in babilong.LABELS.items():
        row = {"input": PASSAGE * 5, "question": "What is it? ", "target": labels[-1]}
        (folder / name).mkdir(parents=True)
        (folder / name / "0k.json").write_text(json.dumps([row, row]))
        (folder / name / "1k.json").write_text(json.dumps([{**row, "input": PASSAGE * 40}]))
    return folder


def mrcr(folder: Path, number: int = 2) -> Path:
    """Rows as the Parquet files have them, as JSON Lines."""
    chat = []
    for i in range(6):
        chat.append({"role": "user", "content": f"write a poem about {i % 3}"})
        chat.append({"role": "assistant", "content": PASSAGE * 2})
    chat.append({"role": "user", "content": "Prepend aYooSG8CQg to the 2nd (1 indexed) poem about 1."})
    for needles in (2, 4, 8):
        row = {
            "prompt": json.dumps(chat), "answer": "aYooSG8CQg" + PASSAGE * 2, "random_string_to_prepend": "aYooSG8CQg",
            "n_needles": needles, "desired_msg_index": 9, "total_messages": len(chat), "n_chars": 1000,
        }  # fmt: skip
        write(folder / f"{needles}needle.jsonl", [row] * number)
    return folder


WRITERS = {
    "infinitebench": infinitebench,
    "lveval": lveval,
    "longbench_v2": longbench_v2,
    "babilong": babilong_files,
    "mrcr": mrcr,
}
