"""How RULER scores (scripts/eval of NVIDIA/RULER c3f5e3b), and its own files of predictions.

A reference counts where it occurs in the prediction, upper and lower case alike: of several the share that occurs, or,
for questions, whether any does. A task's score is the mean x 100, rounded to two decimals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.samples import Sample

_UNPRINTABLE = re.compile("[\x00-\x1f]")


def clean(prediction: str) -> str:
    """A prediction as it is judged: stripped, control characters as line breaks, stripped (evaluate.py:50-58)."""
    return _UNPRINTABLE.sub("\n", prediction.strip()).strip()


def match_all(prediction: str, sample: Sample) -> float:
    """Share of references that occur, 0 to 1 (eval/synthetic/constants.py:28-30); 0 where there are none."""
    found = clean(prediction).lower()
    return sum(reference.lower() in found for reference in sample.outputs) / max(len(sample.outputs), 1)


def match_part(prediction: str, sample: Sample) -> float:
    """Whether any reference occurs, 0 or 1 (eval/synthetic/constants.py:24-26)."""
    found = clean(prediction).lower()
    return float(any(reference.lower() in found for reference in sample.outputs))


def read_predictions(path: Path, task: str) -> Iterator[tuple[str, Sample]]:
    """Predictions in RULER's own format: JSON lines of `input`, `outputs` (or `output`) and `pred`.

    Where the first line's first reference is null there is nothing to compare with: no sample has references, and all
    score 0 (evaluate.py:98-101).

    Raises:
        UserError: the file is missing, or a line is broken or lacks a field.
    """
    try:
        stream = Path(path).open("rb")
    except OSError as error:
        raise UserError(f"{path}: the predictions cannot be read ({error.strerror}); name RULER's file.") from None
    hidden = None
    with stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                row = _row(line, f"{path}, line {number}")
                references = row["outputs"]
                hidden = references[:1] == [None] if hidden is None else hidden
                yield row["pred"], _sample(row, () if hidden else tuple(map(str, references)), task, number - 1)


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{where}: it is not JSON ({error}); mend the line.") from None
    if not isinstance(row, dict) or not isinstance(row.get("pred"), str):
        raise UserError(f"{where}: 'pred' (text) is missing; give the file that RULER's call_api.py writes.")
    row.setdefault("outputs", [row.get("output", "")])
    if not isinstance(row["outputs"], list):
        raise UserError(f"{where}: 'outputs' is {type(row['outputs']).__name__} and must be a list of texts; mend it.")
    return row


def _sample(row: dict[str, Any], references: tuple[str, ...], task: str, index: int) -> Sample:
    length, prompt = row.get("length"), row.get("input")
    return Sample(
        task=task,
        index=index,
        input=prompt if isinstance(prompt, str) else "",
        outputs=references,
        length=length if isinstance(length, int) else 0,
        max_new_tokens=0,
        prompt_tokens=0,
    )
