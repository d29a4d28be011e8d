"""From answered samples to results.json: scores by task and length, by depth, perplexity, and what was skipped.

Scores are means x 100 with two decimals. What could not be asked is a row of `skipped` and never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_ultralong.evaluation import registry
from megatron_ultralong.evaluation.run_folder import FORMAT
from megatron_ultralong.evaluation.running.answer_log import Key, Tally
from megatron_ultralong.evaluation.running.sample_files import Skip

Buckets = Mapping[Key, tuple[list[list[float]], float]]
"""Of each window: [from, to, nats, tokens] rows, and seconds."""


def tables(
    answered: Mapping[Key, Tally],
    windows: Buckets,
    skipped: Iterable[Skip],
    chances: Mapping[str, float],
    complete: bool,
) -> dict[str, Any]:
    """What results.json holds.

    Args:
        answered: samples that were asked, in the order of the tasks.
        windows: windows that were read.
        skipped: what was not.
        chances: task -> what a uniform guesser scores, 0 to 1.
        complete: nothing is left to ask.
    """
    groups: dict[tuple[str, int], list[Tally]] = {}
    for (task, length, _, _), tally in answered.items():
        groups.setdefault((task, length), []).append(tally)
    seconds = sum(tally.seconds for tally in answered.values()) + sum(spent for _, spent in windows.values())
    return {
        "format": FORMAT,
        "complete": complete,
        "scores": [_score_row(task, length, group, chances) for (task, length), group in groups.items()],
        "cells": [row for (task, length), group in groups.items() for row in _cells(task, length, group)],
        "perplexity": perplexity_rows(windows),
        "skipped": [_skip_row(skip) for skip in skipped],
        "seconds": round(seconds, 1),
    }


def mean_score(group: Iterable[Tally]) -> float:
    """Mean x 100, two decimals."""
    scores = [tally.score for tally in group]
    return round(100 * math.fsum(scores) / len(scores), 2)


def _score_row(task: str, length: int, group: list[Tally], chances: Mapping[str, float]) -> dict[str, Any]:
    return {
        "task": task,
        "length": length,
        "score": mean_score(group),
        "samples": len(group),
        "how": "judge" if all(tally.how == "judge" for tally in group) else "generate",
        "budget": max(tally.budget for tally in group),
        "chance": chances.get(task, 0.0),
        "empty": sum(tally.empty for tally in group),
        "unfinished": sum(not tally.finished for tally in group),
        "over_budget": sum(tally.over_budget for tally in group),
        "seconds": round(sum(tally.seconds for tally in group), 3),
    }


def _cells(task: str, length: int, group: list[Tally]) -> list[dict[str, Any]]:
    depths: dict[float, list[Tally]] = {}
    for tally in group:
        if tally.depth is not None:
            depths.setdefault(tally.depth, []).append(tally)
    return [
        {
            "task": task,
            "length": length,
            "depth": depth,
            "score": mean_score(depths[depth]),
            "samples": len(depths[depth]),
        }
        for depth in sorted(depths)
    ]


def perplexity_rows(windows: Buckets) -> list[dict[str, Any]]:
    """exp of the mean loss of all tokens in each bucket of positions, over a task's and length's windows."""
    sums: dict[tuple[str, int, int, int], list[float]] = {}
    for (task, length, _, _), (buckets, _) in windows.items():
        for low, high, nats, tokens in buckets:
            row = sums.setdefault((task, length, int(low), int(high)), [0.0, 0, 0])
            row[0] += nats
            row[1] += tokens
            row[2] += 1
    return [
        {
            "task": task,
            "length": length,
            "from": low,
            "to": high,
            "perplexity": round(math.exp(min(nats / tokens, 700.0)), 4),
            "tokens": int(tokens),
            "windows": int(count),
        }
        for (task, length, low, high), (nats, tokens, count) in sums.items()
    ]


def _skip_row(skip: Skip) -> dict[str, Any]:
    return {"task": skip.task, "length": skip.length, "samples": skip.samples, "reason": skip.reason}


def chances(tasks: Iterable[str]) -> dict[str, float]:
    """Of each task."""
    return {name: registry.find_task(name).chance for name in tasks}
