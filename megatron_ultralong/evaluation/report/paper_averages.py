"""Averages as papers report them: RULER and LV-Eval up to a length, InfiniteBench over its tasks, effective length.

A level is a length of RULER, or one of LV-Eval's five sizes in words, which its tasks' names end in. The average is the
mean over levels of the mean over tasks. What lacks a level or a task is none of the papers' and says so.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from megatron_ultralong.evaluation.report.bootstrap import Estimate, average
from megatron_ultralong.evaluation.report.gathering import Cell

THRESHOLD = 85.6
"""RULER's: what Llama-2-7B scores at 4K (NVIDIA/RULER, README)."""

Estimates = Mapping[Cell, Estimate]


@dataclasses.dataclass(frozen=True)
class Averaging:
    """How a benchmark's averages are made.

    Attributes:
        tasks: how many it has.
        shortest: its first level; each next is twice as long.
        limits: average -> its last level.
    """

    tasks: int
    shortest: int
    limits: Mapping[str, int]


AVERAGINGS = {
    "ruler": Averaging(13, 4096, {"<128K": 131072, "<512K": 524288, "<1M": 1048576}),
    "lveval": Averaging(11, 16384, {"<128K": 131072, "<256K": 262144}),
    "infinitebench": Averaging(12, 1, {"all": 1}),
}


def paper_averages(family: str, own: Estimates, differences: Estimates) -> dict[str, Any]:
    """Average -> {score, low, high, samples, difference, lengths, missing, tasks, of}, where its last level was asked.

    Args:
        family: the benchmark.
        own: a model's cells.
        differences: to the reference, of the cells where there are any.
    """
    found: dict[str, Any] = {}
    averaging = AVERAGINGS.get(family)
    if averaging is None:
        return found
    levels: dict[int, list[Cell]] = {}
    for cell in own:
        if (level := _level(family, cell, own)) is not None:
            levels.setdefault(level, []).append(cell)
    for name, longest in averaging.limits.items():
        wanted = [averaging.shortest << power for power in range(32) if averaging.shortest << power <= longest]
        asked = [level for level in wanted if level in levels]
        if longest not in asked:
            continue
        cells = [levels[level] for level in asked]
        paired = all(cell in differences for group in cells for cell in group)
        found[name] = {
            **_rounded(_mean(own, cells)),
            "difference": _rounded(_mean(differences, cells)) if paired else None,
            "lengths": asked,
            "missing": [level for level in wanted if level not in asked],
            "tasks": min(map(len, cells)),
            "of": averaging.tasks,
        }
    return found


def _level(family: str, cell: Cell, own: Estimates) -> int | None:
    """The level that a cell counts for; of a task that was asked at several lengths of context the longest counts."""
    task, length = cell
    if family == "ruler":
        return length
    if length < max(other for name, other in own if name == task):
        return None
    if family == "infinitebench":
        return 1
    named = re.search(r"_(\d+)k$", task)
    return int(named.group(1)) << 10 if named else None


def _mean(cells: Estimates, groups: list[list[Cell]]) -> Estimate:
    return average([average([cells[cell] for cell in group]) for group in groups])


def _rounded(found: Estimate) -> dict[str, Any]:
    low, high = found.interval
    return {"score": round(found.mean, 2), "low": round(low, 2), "high": round(high, 2), "samples": found.samples}


def effective_length(by_length: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The longest length whose mean over the tasks is above the threshold; RULER's when all its tasks were asked.

    Args:
        by_length: length -> {score, tasks}.
    """
    above = [length for length, row in by_length.items() if row["score"] > THRESHOLD]
    asked = min((row["tasks"] for row in by_length.values()), default=0)
    return {"tokens": max(above, default=None), "threshold": THRESHOLD, "tasks": asked, "of": AVERAGINGS["ruler"].tasks}
