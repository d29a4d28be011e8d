"""LongBench v2: 503 four-way questions about texts of 8K to 2M words (THUDM/LongBench at 2e00731).

The whole prompt is cut in the middle where it is too long. An answer's letter is read from the sentence that the prompt
asks for, with or without brackets, asterisks removed; anything else is wrong. Parts are the published ones: easy, hard,
short, medium, long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.evaluation.benchmarks import prediction_files
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import Row
from megatron_ultralong.evaluation.benchmarks.middle_cut import make_cut_samples
from megatron_ultralong.evaluation.benchmarks.official_clone import text_of
from megatron_ultralong.evaluation.benchmarks.prompt_templates import OWN, Template
from megatron_ultralong.evaluation.registry import MakeOptions, Task
from megatron_ultralong.evaluation.samples import Sample

NAME = "longbench_v2"
BUDGET = 128
FILES = ("data.json", "*.jsonl", "*.json", "*.parquet")

_PATTERNS = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))
_CHOICES = "(A) {choice_A}\n(B) {choice_B}\n(C) {choice_C}\n(D) {choice_D}"
_TEMPLATE = Template(
    base="Here is a text.\n\n{context}\n\nQuestion about the text: {question}\n" + _CHOICES + "\n\n",
    lead="The correct answer is",
    chat="Here is a text.\n\n{context}\n\nQuestion about the text: {question}\n"
    + _CHOICES
    + "\n\nReply with one sentence that ends in the letter of the right choice: The correct answer is (letter).",
)


def letter(answer: str) -> str | None:
    """The letter that an answer names in the sentence asked for; None: none."""
    answer = answer.replace("*", "")
    found = next(filter(None, (pattern.search(answer) for pattern in _PATTERNS)), None)
    return found.group(1) if found else None


def score(prediction: str, sample: Sample) -> float:
    """Whether the letter is the reference."""
    return float(letter(sample.answer_prefix + prediction) == sample.outputs[0])


def _reference(row: Row, _: Path) -> Sample:
    answer = row.text("answer")
    if answer not in ("A", "B", "C", "D"):
        row.refuse("answer", "one of the letters A to D")
    parts = [row.values[name] for name in ("difficulty", "length") if isinstance(row.values.get(name), str)]
    return prediction_files.reference(NAME, row, (answer,), BUDGET, id=row.values.get("_id"), parts=parts)


def _text(row: Row) -> str:
    """The response, or, where a line has only the letter that was found in it, that letter in its sentence."""
    if "response" in row.values or "prediction" in row.values or row.values.get("pred") not in ("A", "B", "C", "D"):
        return row.text("response", "prediction", "pred", "output")
    return f"The correct answer is ({row.values['pred']})"


def _official(options: MakeOptions) -> tuple[Template, str]:
    """prompts/0shot.txt of a clone, whose $DOC$ and the like become our fields."""
    assert options.official is not None
    path = options.official / "prompts" / "0shot.txt"
    text = text_of(path)
    for theirs, ours in (("$DOC$", "context"), ("$Q$", "question"), *((f"$C_{x}$", f"choice_{x}") for x in "ABCD")):
        text = text.replace(theirs, "{" + ours + "}")
    return Template(base=text, chat=text), "prompts/0shot.txt"


def _fields(row: Row) -> dict[str, str]:
    names = ("context", "question", *(f"choice_{x}" for x in "ABCD"))
    return {name: row.text(name).strip() for name in names}


def make(options: MakeOptions) -> Iterator[Sample]:
    """Samples from data.json as it is published."""
    template, source = _official(options) if options.official else (_TEMPLATE, OWN)
    return make_cut_samples(
        NAME, options, FILES, lambda row, file: (_reference(row, file), template, _fields(row)), source
    )


def tasks() -> list[Task]:
    """The one task."""
    return [
        Task(
            name=NAME,
            budget=BUDGET,
            score=score,
            make=make,
            read=lambda path: prediction_files.read_predictions(NAME, path, FILES, _reference, _text),
            references=lambda path: prediction_files.read_references(path, FILES, _reference),
            chance=0.25,
        )
    ]
