"""`tools/evaluate.py score`: predictions made elsewhere, judged as their benchmark judges them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError, shown
from megatron_ultralong.evaluation.benchmarks import prediction_files
from megatron_ultralong.evaluation.benchmarks.benchmark_rows import Row, matching_files, read_rows
from megatron_ultralong.evaluation.registry import Task, find_task
from megatron_ultralong.evaluation.samples import Sample, read_samples

logger = logging.getLogger(__name__)

_KEYS = ("index", "id", "_id")


def score(*, task: str, predictions: Path, data: Path | None = None) -> None:
    """Score a file of predictions; the last line on stdout is JSON: task, score (0 to 100), samples, empty, parts.

    Args:
        task: as the benchmark names it: infinitebench/kv_retrieval, lveval/hotpotwikiqa_mixup, ruler/niah_single_1,
            babilong/qa1, longbench_v2, mrcr/2needle, graphwalks/bfs.
        predictions: file, or folder of files, as the benchmark's own scripts write them, or our samples with a
            `prediction` added to each line.
        data: where the predictions carry no references: our samples, or the benchmark's data file. Lines belong
            together by index or id, or, where there is none, by their order.
    """
    found = find_task(task)
    if data is None and found.read is None:
        raise UserError(f"--task {task}: predictions made elsewhere cannot be read for it; give its samples by --data.")
    pairs = _joined(found, predictions, data) if data is not None else found.read(predictions)  # type: ignore[misc]
    result = summary(found, pairs)
    if not result["samples"]:
        raise UserError(f"{shown(predictions)}: there is no prediction in it; give a file that has some.")
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def summary(task: Task, pairs: Iterator[tuple[str, Sample]]) -> dict[str, Any]:
    """The result of some predictions.

    Returns:
        task; score, the mean in percent, two decimals; samples; empty, how many predictions are; and parts, where
        samples name some (a level, a difficulty): {score, samples} each.
    """
    scores: list[float] = []
    empty = 0
    parts: dict[str, list[float]] = {}
    for prediction, sample in pairs:
        scores.append(task.score(prediction, sample))
        empty += not prediction.strip()
        for part in sample.extra.get("parts") or ():
            parts.setdefault(str(part), []).append(scores[-1])
    result: dict[str, Any] = {"task": task.name, "score": percent(scores), "samples": len(scores), "empty": empty}
    if parts:
        result["parts"] = {part: {"score": percent(each), "samples": len(each)} for part, each in parts.items()}
    if empty:
        logger.warning("%s: %d of %d predictions are empty", task.name, empty, len(scores))
    return result


def percent(scores: list[float]) -> float:
    """Mean in percent, two decimals, rounded as RULER rounds; 0 of none."""
    return round(sum(scores) / max(len(scores), 1) * 100, 2)


def _joined(task: Task, predictions: Path, data: Path) -> Iterator[tuple[str, Sample]]:
    """Predictions with samples from another file."""
    samples = _samples(task, data)
    rows = [row for file in matching_files(predictions, ("*.jsonl",), prediction_files.MEND) for row in read_rows(file)]
    keyed = [_key(row) for row in rows]
    if any(key is None for key in keyed):
        if any(key is not None for key in keyed):
            row = rows[keyed.index(None)]
            raise UserError(f"{row.place}: {' or '.join(_KEYS)} is missing, and other lines have one; give it to all.")
        if len(rows) != len(samples):
            raise UserError(
                f"{shown(predictions)} has {len(rows)} predictions and {shown(data)} {len(samples)} samples; give one "
                "prediction a sample, in the same order, or an index to each line."
            )
        yield from ((prediction_files.prediction_text(row), each) for row, each in zip(rows, samples, strict=True))
        return
    yield from _by_key(rows, samples, predictions, data)


def _by_key(rows: list[Row], samples: list[Sample], predictions: Path, data: Path) -> Iterator[tuple[str, Sample]]:
    known = {key: sample for sample in samples for key in {sample.index, sample.extra.get("id")} - {None}}
    seen: dict[int, Row] = {}
    for row in rows:
        key, sample = _key(row), known.get(_key(row))
        if sample is None:
            raise UserError(f"{row.place}: {shown(data)} has no sample {key!r}; give the samples that were asked.")
        if id(sample) in seen:
            raise UserError(f"{row.place}: sample {key!r} was answered already ({seen[id(sample)].place}); drop one.")
        seen[id(sample)] = row
        yield prediction_files.prediction_text(row), sample
    if len(seen) != len(samples):
        missing = next(sample.index for sample in samples if id(sample) not in seen)
        raise UserError(
            f"{shown(predictions)} has {len(seen)} predictions and {shown(data)} {len(samples)} samples; {missing} is "
            "the first without one: predict it too, an empty text if the model said nothing."
        )


def _key(row: Row) -> Any:
    return next((row.values[name] for name in _KEYS if isinstance(row.values.get(name), int | str)), None)


def _samples(task: Task, data: Path) -> list[Sample]:
    """Our samples, or the benchmark's own data."""
    first = next(iter(read_rows(data, "give our samples or the benchmark's data file"))) if data.is_file() else None
    if first is not None and isinstance(first.values.get("outputs"), list):
        found = list(read_samples(data))
        other = next((sample.task for sample in found if sample.task not in ("", task.name)), None)
        if other is not None:
            raise UserError(f"--data {shown(data)}: its samples are of task {other}; score them with --task {other}.")
        return found
    if task.references is None:
        raise UserError(
            f"--data {shown(data)}: it holds no samples of {task.name}; make them with tools/evaluate.py make."
        )
    return list(task.references(data))
