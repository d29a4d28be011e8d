"""InfiniteBench's twelve tasks (OpenBMB/InfiniteBench at 88b3daa): its data, its prediction files, its budgets.

Data are its TASK.jsonl, predictions its preds_TASK.jsonl. Prompts are cut in their middle; an odd budget's last token
is the end's. Its own scripts cut to a model's whole length and let the answer pass it; here the answer's budget is
within, so that math_calc, which may answer 30,000 tokens, wants lengths well above that.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.benchmarks import prediction_files
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import Row
from megatron_ultralong.evaluation.benchmarks.infinitebench import infinitebench_prompts as prompts
from megatron_ultralong.evaluation.benchmarks.infinitebench.infinitebench_scoring import SCORERS, number
from megatron_ultralong.evaluation.benchmarks.middle_cut import make_cut_samples
from megatron_ultralong.evaluation.benchmarks.prompt_templates import OWN, Template
from megatron_ultralong.evaluation.registry import MakeOptions, Task
from megatron_ultralong.evaluation.samples import Sample

BUDGETS = {
    "passkey": 6,
    "number_string": 12,
    "kv_retrieval": 50,
    "longbook_sum_eng": 1200,
    "longbook_choice_eng": 40,
    "longbook_qa_eng": 40,
    "longbook_qa_chn": 40,
    "longdialogue_qa_eng": 40,
    "math_find": 3,
    "math_calc": 30000,
    "code_run": 5,
    "code_debug": 5,
}
"""Tokens of an answer."""
CHOICES = ("longbook_choice_eng", "code_debug")
NUMBERS = ("math_find", "math_calc", "code_run")
VERBATIM = ("passkey", "number_string", "kv_retrieval")

_LABELS = ("ground_truth", "label", "answer")


def _reference(row: Row, _: Path, *, task: str) -> Sample:
    """The labels of a line of predictions, or of data."""
    name = row.name_of(*_LABELS)
    value = row.values[name]
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]  # math_calc's may be a list in a list
    labels = _texts(row, name, value)
    if task in CHOICES:
        labels = _choice(row, name, labels)
    if task in NUMBERS and any(number(label) is None for label in labels):
        row.refuse(name, "a number or a list of numbers")
    return prediction_files.reference(f"infinitebench/{task}", row, labels, BUDGETS[task], id=row.values.get("id"))


def _texts(row: Row, name: str, value: Any) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in found):
        row.refuse(name, "a text, a number or a list of them")
    return tuple(map(str, found))


def _choice(row: Row, name: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Option and letter; data may name the option alone, among `options`."""
    if len(labels) == 1 and labels[0] not in tuple("ABCD"):
        options = row.texts("options")
        if labels[0] not in options[:4]:
            row.refuse(name, "one of the four options")
        return labels[0], "ABCD"[options.index(labels[0])]
    if len(labels) > 2 or labels[-1] not in tuple("ABCD"):
        row.refuse(name, "an option and its letter")
    return labels


def make(options: MakeOptions, task: str) -> Iterator[Sample]:
    """Samples from the published files."""
    template, source = prompts.OWN_TEMPLATES[task], OWN
    if options.official is not None:
        template, source = prompts.official_template(options.official, options.form, task)

    def build(row: Row, file: Path) -> tuple[Sample, Template, Mapping[str, str]]:
        return _reference(row, file, task=task), template, prompts.fields(row, task)

    return make_cut_samples(
        f"infinitebench/{task}", options, (f"{task}.jsonl",), build, source, needle=task in VERBATIM
    )


def tasks() -> list[Task]:
    """In the order of the benchmark's own list."""
    return [_task(name) for name in SCORERS]


def _task(name: str) -> Task:
    to_reference = functools.partial(_reference, task=name)
    whole, predictions, data = f"infinitebench/{name}", (f"preds_{name}.jsonl",), (f"{name}.jsonl",)
    return Task(
        name=whole,
        budget=BUDGETS[name],
        score=SCORERS[name],
        make=functools.partial(make, task=name),
        read=lambda path: prediction_files.read_predictions(whole, path, predictions, to_reference),
        references=lambda path: prediction_files.read_references(path, data, to_reference),
        chance=0.25 if name in CHOICES else 0.0,
    )
