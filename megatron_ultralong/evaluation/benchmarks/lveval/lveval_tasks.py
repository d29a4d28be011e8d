"""LV-Eval's eleven sets as tasks: all five lengths (lveval/cmrc_mixup) or one (lveval/cmrc_mixup_16k).

Names of data files and predictions are LV-Eval's: SET_LEVEL.jsonl. Levels count words, not tokens. The prompt is cut to
the model's length less 500 tokens, before the chat template, half from each end, an odd one's last token dropped.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_ultralong.evaluation.benchmarks import prediction_files
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import Row
from megatron_ultralong.evaluation.benchmarks.lveval.lveval_scoring import SCORERS
from megatron_ultralong.evaluation.benchmarks.middle_cut import make_cut_samples
from megatron_ultralong.evaluation.benchmarks.official_clone import entry
from megatron_ultralong.evaluation.benchmarks.prompt_templates import OWN, Template
from megatron_ultralong.evaluation.registry import MakeOptions, Task
from megatron_ultralong.evaluation.samples import Sample

LEVELS = ("16k", "32k", "64k", "128k", "256k")
RESERVE = 500
CHINESE = {"multifieldqa_zh_mixup", "factrecall_zh", "cmrc_mixup", "lic_mixup", "dureader_mixup"}

_LEVEL = re.compile(r"_(\d{1,3}k)$")
_ENGLISH_TEMPLATE = Template(
    base="Here are passages, of which few matter for the question after them.\n\n{context}\n\n"
    "Answer in as few words as the passages allow, and say nothing else.\nQuestion: {input}\n",
    lead="Answer:",
    chat="Here are passages, of which few matter for the question after them.\n\n{context}\n\n"
    "Question: {input}\nAnswer in as few words as the passages allow, and say nothing else.",
)
_CHINESE_TEMPLATE = Template(
    base="以下是一些文章，其中只有少数与后面的问题有关。\n\n{context}\n\n请用尽量简短的话回答，不要说别的。\n问题：{input}\n",
    lead="回答：",
    chat="以下是一些文章，其中只有少数与后面的问题有关。\n\n{context}\n\n问题：{input}\n请用尽量简短的话回答，不要说别的。",
)


def budget(name: str) -> int:
    """Tokens of an answer to a set's questions."""
    return 16 if name.startswith("factrecall") else 64


def _reference(row: Row, path: Path, *, name: str, task: str) -> Sample:
    answers = row.texts("answers")
    keywords = row.values.get("gold_ans", row.values.get("answer_keywords"))
    if keywords is not None and not isinstance(keywords, str):
        row.refuse("gold_ans" if "gold_ans" in row.values else "answer_keywords", "a text")
    level = _LEVEL.search(path.stem)
    parts = [level.group(1)] if level else []
    return prediction_files.reference(f"lveval/{task}", row, answers, budget(name), keywords=keywords, parts=parts)


def _official(options: MakeOptions, name: str) -> tuple[Template, str]:
    """DATASET_PROMPT of a clone's config.py, for both forms."""
    assert options.official is not None
    path = options.official / "config.py"
    prompt = entry(path, "DATASET_PROMPT", name, str)
    return Template(base=prompt, chat=prompt), "config.py, DATASET_PROMPT"


def make(options: MakeOptions, name: str, task: str) -> Iterator[Sample]:
    """Samples of one level or all, from the published files."""
    own = _CHINESE_TEMPLATE if name in CHINESE else _ENGLISH_TEMPLATE
    template, source = _official(options, name) if options.official else (own, OWN)

    def build(row: Row, file: Path) -> tuple[Sample, Template, Mapping[str, str]]:
        fields = {field: row.text(field) for field in ("context", "input")}
        return _reference(row, file, name=name, task=task), template, fields

    return make_cut_samples(f"lveval/{task}", options, _files(name, task), build, source, reserve=RESERVE, even=True)


def _files(name: str, task: str) -> tuple[str, ...]:
    levels = LEVELS if task == name else (task.removeprefix(f"{name}_"),)
    return tuple(f"{folder}{name}_{level}.jsonl" for level in levels for folder in ("", "*/"))


def tasks() -> list[Task]:
    """Sets over all levels."""
    return [_task(name, name) for name in SCORERS]


def subsets() -> list[Task]:
    """Each level of each set."""
    return [_task(name, f"{name}_{level}") for name in SCORERS for level in LEVELS]


def _task(name: str, task: str) -> Task:
    to_reference = functools.partial(_reference, name=name, task=task)
    files, whole = _files(name, task), f"lveval/{task}"
    return Task(
        name=whole,
        budget=budget(name),
        score=SCORERS[name],
        make=functools.partial(make, name=name, task=task),
        read=lambda path: prediction_files.read_predictions(whole, path, files, to_reference),
        references=lambda path: prediction_files.read_references(path, files, to_reference),
    )
