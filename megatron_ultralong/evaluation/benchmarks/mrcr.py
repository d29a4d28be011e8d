"""MRCR as OpenAI published it: a long chat that asks the same thing several times, and the i-th answer to be repeated.

Rows are those of the dataset openai/mrcr, whose prompts are used as they are, and whole. An answer must begin with a
random word that the question gives; it and the reference, both without the word, are compared by difflib's
SequenceMatcher, answer first, whose heuristic leaves out characters that make up more than a hundredth of a reference
of 200 characters or more.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.evaluation.benchmarks import prediction_files
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import Row
from megatron_ultralong.evaluation.benchmarks.whole_prompts import make_whole_samples
from megatron_ultralong.evaluation.registry import MakeOptions, Task
from megatron_ultralong.evaluation.samples import Form, Sample

BUDGET = 2048
NEEDLES = (2, 4, 8)


def score(prediction: str, sample: Sample) -> float:
    """0 without the random word at the beginning, else how alike the rest is, 0 to 1."""
    word = str(sample.extra.get("random_string_to_prepend", ""))
    if not prediction.startswith(word):
        return 0.0
    return difflib.SequenceMatcher(None, prediction.removeprefix(word), sample.outputs[0].removeprefix(word)).ratio()


def _reference(row: Row, _: Path, *, needles: int) -> Sample:
    answer, word = (row.text(name) for name in ("answer", "random_string_to_prepend"))
    if not word:
        row.refuse("random_string_to_prepend", "the word that answers begin with")
    return prediction_files.reference(
        f"mrcr/{needles}needle", row, (answer,), BUDGET, random_string_to_prepend=word, parts=[]
    )


def _messages(row: Row) -> list[dict[str, str]]:
    """The chat, which the dataset holds as JSON in a text."""
    value = row.value("prompt")
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    known = isinstance(found, list) and all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in found
    )
    if not known or not found or found[-1]["role"] != "user":
        row.refuse("prompt", "the JSON of a chat that ends with the user's turn")
    return [{"role": each["role"], "content": each["content"]} for each in found]


def make(options: MakeOptions, needles: int) -> Iterator[Sample]:
    """Samples from the published files; in base form the chat is written out with a name before each turn."""

    def build(row: Row, file: Path) -> Sample | None:
        if row.values.get("n_needles", needles) != needles:
            return None
        sample, messages = _reference(row, file, needles=needles), _messages(row)
        if options.form == "chat":
            return _with(sample, messages[-1]["content"], tuple(messages[:-1]), "")
        written = "\n\n".join(f"{each['role'].capitalize()}: {each['content']}" for each in messages)
        return _with(sample, written + "\n\n", (), "Assistant: ")

    return make_whole_samples(f"mrcr/{needles}needle", options, _files(needles), build, "openai/mrcr's rows")


def _with(sample: Sample, text: str, turns: tuple[dict[str, str], ...], lead: str) -> Sample:
    form: Form = "base" if lead else "chat"
    return dataclasses.replace(sample, input=text, turns=turns, answer_prefix=lead, form=form)


def _files(needles: int) -> tuple[str, ...]:
    return (f"{needles}needle*.parquet", f"{needles}needle/*.parquet", f"{needles}needle*.jsonl")


def tasks() -> list[Task]:
    """2, 4 and 8 needles."""
    return [_task(needles) for needles in NEEDLES]


def _task(needles: int) -> Task:
    name, to_reference = f"mrcr/{needles}needle", functools.partial(_reference, needles=needles)
    return Task(
        name=name,
        budget=BUDGET,
        score=score,
        make=functools.partial(make, needles=needles),
        read=lambda path: prediction_files.read_predictions(name, path, _files(needles), to_reference),
        references=lambda path: prediction_files.read_references(path, _files(needles), to_reference),
    )
