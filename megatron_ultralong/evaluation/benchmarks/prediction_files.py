"""Predictions made elsewhere, and the references to judge them by, as samples.

A prediction's line either carries its references under the benchmark's own field names, or is one of our samples
(`outputs`) with the prediction added. Which it is, each line says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import PREDICTION, Row, matching_files, read_rows
from megatron_ultralong.evaluation.samples import Sample, sample_of

Reference = Callable[[Row, Path], Sample]
"""A row of the benchmark's own, and its file -> the sample without its prompt."""

MEND = "give predictions as the benchmark's own scripts write them, or the references by --data"
DATA_MEND = "give the benchmark's data file as it is published"


def reference(task: str, row: Row, outputs: Sequence[str], budget: int, **extra: Any) -> Sample:
    """A sample of which only what scoring needs is known."""
    return Sample(
        task=task, index=row.index, input="", outputs=tuple(outputs), length=0, max_new_tokens=budget, prompt_tokens=0,
        extra=extra,
    )  # fmt: skip


def prediction_text(row: Row) -> str:
    """The prediction, under any of its usual names; null is an empty one."""
    return row.text(*PREDICTION)


def read_predictions(
    task: str,
    path: Path,
    patterns: Sequence[str],
    to_reference: Reference,
    to_text: Callable[[Row], str] = prediction_text,
) -> Iterator[tuple[str, Sample]]:
    """Predictions, each with its sample.

    Args:
        task: its name.
        path: a file, or a folder of them.
        patterns: names of a folder's files.
        to_reference: for the benchmark's own lines.
        to_text: the prediction of the benchmark's own lines.

    Raises:
        UserError: a file is missing or broken, a field is missing or holds what it cannot, or a sample is another
            task's.
    """
    for file in matching_files(path, patterns, MEND):
        for row in read_rows(file, MEND):
            if "outputs" not in row.values:
                yield to_text(row), to_reference(row, file)
                continue
            sample = sample_of(row.values, row.place, row.index)
            if sample.task not in ("", task):
                raise UserError(
                    f"{row.place}: the sample is of task {sample.task}; score it with --task {sample.task}."
                )
            yield prediction_text(row), sample


def read_references(path: Path, patterns: Sequence[str], to_reference: Reference) -> Iterator[Sample]:
    """The samples of a benchmark's data, without prompts; arguments and errors as in `read_predictions`."""
    for file in matching_files(path, patterns, DATA_MEND):
        for row in read_rows(file, DATA_MEND):
            yield to_reference(row, file)
