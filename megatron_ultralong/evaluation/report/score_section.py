"""A benchmark's part of the report: curves of scores by length, then tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from megatron_ultralong.evaluation.report.line_chart import Axes, Line, Point, line_chart
from megatron_ultralong.evaluation.report.markup import (
    details,
    figure,
    legend,
    number,
    section,
    task_label,
    with_interval,
)
from megatron_ultralong.evaluation.report.scale import length_label, model_color
from megatron_ultralong.evaluation.report.score_tables import Family, every_score, overview, task_tables

TITLES = {
    "ruler": "RULER",
    "needles": "Needles by length",
    "recall": "Short task",
    "infinitebench": "InfiniteBench",
    "lveval": "LV-Eval",
    "longbench_v2": "LongBench v2",
    "babilong": "BABILong",
    "mrcr": "MRCR",
    "graphwalks": "GraphWalks",
}
"""How benchmarks write their names."""
_WORDS = {
    "ruler": "Tasks of finding, following and counting in long texts; a score is the share of references that the "
    "answer holds.",
    "recall": "Facts at random depths of a short text, and a question about each: what extension must not cost.",
    "needles": "The mean over depths.",
}
_CURVES_BESIDE = 3


def title_of(family: str) -> str:
    """How a family is called in the report."""
    return TITLES.get(family, family)


def score_section(name: str, family: Family, names: Sequence[str], limit: int | None) -> str:
    """The section of one benchmark.

    Args:
        name: of the family.
        family: see `comparison.compare_scores`.
        names: of the models, in the order of their colours.
        limit: the reference's context, marked in curves.
    """
    parts = [legend(names)] if len(names) > 1 else []
    if len(family["lengths"]) > 1:
        parts.append(_curves(name, family, names, limit))
    parts += [overview(family, names), task_tables(family, names)]
    parts.append(details("Every score with its interval", every_score(family, names)))
    words = _WORDS.get(name, "Each task has the same weight.") + " Intervals are of 95 %"
    words += "; differences are over the same samples, bold where the interval leaves out zero." if names[1:] else "."
    return section(name, title_of(name), words, *parts)


def _curves(name: str, family: Family, names: Sequence[str], limit: int | None) -> str:
    marks = [(limit, f"context of {names[0]}")] if limit else []
    axes = Axes(x_label="tokens", y_range=(0, 100), marks=marks)
    beside = []
    if len(family["tasks"]) > 1:
        rows = {model: family["models"][model]["lengths"] for model in names}
        beside.append(_curve("mean over tasks", f"{title_of(name)} by length", rows, names, axes))
    every = [
        _curve(task_label(task), f"{task} by length",
               {model: family["models"][model]["tasks"][task] for model in names}, names, axes)
        for task in family["tasks"]
    ]  # fmt: skip
    if len(every) <= _CURVES_BESIDE:
        return _beside([*beside, *every])
    return _beside(beside) + details("Curves of every task", _beside(every))


def _beside(charts: Sequence[str]) -> str:
    return '<div class="side">' + "".join(charts) + "</div>"


def _curve(caption: str, title: str, rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], axes: Axes) -> str:
    lines = []
    for index, model in enumerate(names):
        points = [
            Point(int(length), row["score"], row["low"], row["high"],
                  f"{model} at {length_label(int(length))} tokens: {with_interval(row)}")
            for length, row in rows[model].items()
        ]  # fmt: skip
        if points:
            lines.append(Line(model, model_color(index), points))
    words = "; ".join(
        f"{line.name} {number(line.points[0].y)} at {length_label(int(line.points[0].x))} and "
        f"{number(line.points[-1].y)} at {length_label(int(line.points[-1].x))} tokens"
        for line in lines
    )
    return figure(line_chart(lines, axes, f"{title}: {words}."), escape(caption))
