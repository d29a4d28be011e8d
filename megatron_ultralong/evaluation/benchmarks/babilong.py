"""BABILong: bAbI's twenty tasks, their facts spread through books (booydar/babilong at 7a6efee).

An answer is lower-cased and cut at its first full stop and at marks that begin a further example; right is the target
if of the task's labels that the answer names, those of the question left out, it is the only one. Naming is by
substring, so that "none" also names "one", and the answer "none" to qa7 is never right; their code has it so. Targets
that are lists (qa8) want all their labels and no other.

Prompts are never cut: the facts lie anywhere. What is longer than a length is left out, and said.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.evaluation.benchmarks import prediction_files
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import Row
from megatron_ultralong.evaluation.benchmarks.official_clone import entry, literal
from megatron_ultralong.evaluation.benchmarks.prompt_templates import OWN, Template
from megatron_ultralong.evaluation.benchmarks.whole_prompts import make_whole_samples
from megatron_ultralong.evaluation.registry import MakeOptions, Task
from megatron_ultralong.evaluation.samples import Sample

BUDGET = 20

_PLACES = "bathroom bedroom garden hallway kitchen office"
_LABELS = {
    5: "Bill Fred Jeff Mary apple football milk",
    6: "no yes",
    7: "none one three two",
    8: "apple football milk nothing",
    9: "no yes",
    10: "maybe no yes",
    14: "bedroom cinema kitchen office park school",
    15: "cat mouse sheep wolf",
    16: "gray green white yellow",
    17: "no yes",
    18: "no yes",
    19: "e,e e,n e,s n,e n,n n,w s,e s,s s,w w,n w,s w,w",
    20: "bedroom bored garden hungry kitchen thirsty tired",
}
LABELS: dict[str, tuple[str, ...]] = {
    f"qa{number}": tuple(_LABELS.get(number, _PLACES).split()) for number in range(1, 21)
}
"""What each task's answers may be."""
CHANCE = {name: 1 / len(labels) for name, labels in LABELS.items()} | {"qa8": 1 / 8}
"""What guessing uniformly among the labels gives; of qa8 among all sets of the three things."""

_TEMPLATE = Template(
    base="Facts are hidden in the following text. Use only them to answer the question about them.\n\n{context}\n\n"
    "{form}\nQuestion: {question}\n",
    lead="Answer:",
    chat="Facts are hidden in the following text. Use only them to answer the question about them.\n\n{context}\n\n"
    "{form}\nQuestion: {question}",
)
_FORM = "The answer is one of: {labels}."
_FORMS = {
    "qa8": "The answer names everything that is asked for, with commas between, or is: nothing.",
    "qa19": "The answer is two steps with a comma between, each the first letter of north, east, south or west.",
}


def score(prediction: str, sample: Sample, labels: tuple[str, ...]) -> float:
    """Whether the target is what the answer names.

    Args:
        prediction: the answer.
        sample: its `outputs` is the target, its `extra` has the question.
        labels: the task's.
    """
    said = prediction.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    target, question = sample.outputs[0].lower(), str(sample.extra.get("question", "")).lower()
    small = {label.lower() for label in labels}
    named = {label for label in small if label in said and label not in question}
    if "," in target and len(target) > 3:
        wanted = target.split(",")
        return float(all(each in named for each in wanted) and len(named) == len(wanted))
    return float(named == {target})


def _reference(row: Row, path: Path, *, task: str) -> Sample:
    target, question = (row.text(name) for name in ("target", "question"))
    return prediction_files.reference(
        f"babilong/{task}", row, (target,), BUDGET, question=question, parts=_part(path, task)
    )


def _part(path: Path, task: str) -> list[str]:
    """The length that a file's name says: qa1_16k_instruction_yes.csv, qa1/16k.json, 16k/qa1-00000-of-00001.parquet."""
    words = [path.parent.name, *path.stem.replace("-", "_").split("_")]
    return [word for word in words if word != task and word[:-1].isdigit() and word[-1] in "kM"][:1]


def _files(task: str) -> tuple[str, ...]:
    return (f"{task}_*.csv", f"{task}/*.json", f"data/{task}/*.json", f"*/{task}-*.parquet")


def _official(options: MakeOptions, task: str) -> tuple[Template, str]:
    """babilong/prompts.py of a clone: instruction, examples, post_prompt, and the two templates around them."""
    assert options.official is not None
    path = options.official / "babilong" / "prompts.py"
    whole = "\n\n".join(str(literal(path, name)) for name in ("TASK_TEMPLATE", "USER_TEMPLATE"))
    for name, text in entry(path, "DEFAULT_PROMPTS", task, dict).items():
        whole = whole.replace("{" + str(name) + "}", str(text))
    return Template(base=whole, chat=whole), "babilong/prompts.py"


def make(options: MakeOptions, task: str) -> Iterator[Sample]:
    """Samples from the published files."""
    template, source = _official(options, task) if options.official else (_TEMPLATE, OWN)
    form = _FORMS.get(task, _FORM.replace("{labels}", ", ".join(LABELS[task])))

    def build(row: Row, file: Path) -> Sample:
        context = row.text("input").strip()
        base = _reference(row, file, task=task)
        fields = {"context": context, "question": base.extra["question"], "form": form}
        sample = template.asked(base, options.form, fields)
        return sample if options.official is None else dataclasses.replace(sample, input=sample.input.strip())

    return make_whole_samples(f"babilong/{task}", options, _files(task), build, source)


def tasks() -> list[Task]:
    """qa1 to qa20."""
    return [_task(name) for name in LABELS]


def _task(name: str) -> Task:
    to_reference = functools.partial(_reference, task=name)
    return Task(
        name=f"babilong/{name}",
        budget=BUDGET,
        score=functools.partial(score, labels=LABELS[name]),
        make=functools.partial(make, task=name),
        read=lambda path: prediction_files.read_predictions(f"babilong/{name}", path, _files(name), to_reference),
        references=lambda path: prediction_files.read_references(path, _files(name), to_reference),
        chance=CHANCE[name],
    )
