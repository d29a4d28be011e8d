"""A benchmark's tasks by length as one PNG, for papers and READMEs: a panel a model, the mean below a line."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_ultralong.evaluation.report.markup import number, task_label
from megatron_ultralong.evaluation.report.scale import COLORS, INK, MUTED, length_label, score_color, text_color

_ROW, _COLUMN, _NAMES, _GAP = 0.3, 0.62, 1.75, 0.5
"""Inches: a cell, the names of tasks, and between panels."""


def task_png(family: Mapping[str, Any], names: Sequence[str], headline: str) -> bytes:
    """A PNG.

    Args:
        family: see `comparison.compare_scores`.
        names: models in order.
        headline: above all.
    """
    lengths, tasks = family["lengths"], family["tasks"]
    panel = _COLUMN * len(lengths)
    wide, high = _NAMES + len(names) * (panel + _GAP), 1.5 + _ROW * (len(tasks) + 1.3)
    figure = Figure(figsize=(max(wide, 5.0), high), dpi=160, facecolor="white")
    figure.text(0.15 / wide, 1 - 0.38 / high, headline, fontsize=14, fontweight="bold", color=INK)
    for place, name in enumerate(names):
        left = _NAMES + place * (panel + _GAP)
        bounds = (left / wide, 0.2 / high, panel / wide, _ROW * (len(tasks) + 1.3) / high)
        axes = figure.add_axes(bounds)
        _panel(axes, family["models"][name], tasks, lengths)
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold", color=COLORS[place % len(COLORS)], pad=26)
        if place:
            axes.set_yticklabels([])
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _panel(axes: Axes, model: Mapping[str, Any], tasks: Sequence[str], lengths: Sequence[int]) -> None:
    rows = [model["tasks"][task] for task in tasks] + [model["lengths"]]
    places = [index + 0.5 for index in range(len(tasks))] + [len(tasks) + 0.8]
    for y, row in zip(places, rows, strict=True):
        for x, length in enumerate(lengths):
            cell = row.get(str(length))
            color = score_color(cell["score"]) if cell else "#f3f4f6"
            axes.bar(x + 0.5, 0.94, width=0.96, bottom=y - 0.47, color=color)
            words, ink = (number(cell["score"]), text_color(cell["score"])) if cell else ("\u2013", MUTED)
            axes.text(x + 0.5, y + 0.02, words, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xlim(0, len(lengths))
    axes.set_ylim(len(tasks) + 1.3, 0)
    axes.set_yticks(places, [*map(task_label, tasks), "mean"])
    axes.set_xticks([x + 0.5 for x in range(len(lengths))], [length_label(length) for length in lengths])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8.5, labelcolor=MUTED)
    for spine in axes.spines.values():
        spine.set_visible(False)
