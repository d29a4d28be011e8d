"""The report's perplexities: by position at the greatest length, and by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from megatron_ultralong.evaluation.report.line_chart import Axes, Line, Point, line_chart
from megatron_ultralong.evaluation.report.markup import details, figure, legend, model_tag, section, table
from megatron_ultralong.evaluation.report.scale import length_label, model_color

Rows = Sequence[Mapping[str, Any]]
_NAMES = {
    "by_position": "by position, in windows of {length} tokens",
    "last_window": "of the last tokens, by length of context",
    "sliding_window": "sliding window, by length of context",
}
_LOGARITHMIC = 8.0


def perplexity_section(found: Mapping[str, Mapping[str, Rows]], names: Sequence[str], limit: int | None) -> str:
    """The section; `found` as of `perplexities.perplexities`."""
    charts, tables = [], []
    for task, by_model in found.items():
        kind = task.partition("/")[2]
        if kind == "by_position":
            longest = max(row["length"] for rows in by_model.values() for row in rows)
            shown = {name: [row for row in rows if row["length"] == longest] for name, rows in by_model.items()}
            charts.append(_chart(task, shown, names, "to", "position in tokens", longest, limit))
        else:
            charts.append(_chart(task, by_model, names, "length", "context in tokens", None, limit))
        tables.append(details(f"The numbers: {escape(kind.replace('_', ' '))}", _numbers(by_model, names)))
    return section(
        "perplexity",
        "Perplexity",
        "Held-out documents, no part of which was trained on: lower is better, and a model that uses its context "
        "predicts better the more it has. Bands are 95 % intervals over windows.",
        legend(names) if len(names) > 1 else "",
        '<div class="side">' + "".join(charts) + "</div>",
        *tables,
    )


def _chart(
    task: str, by_model: Mapping[str, Rows], names: Sequence[str], place: str, label: str, longest: int | None,
    limit: int | None,
) -> str:  # fmt: skip
    lines = []
    for name, rows in by_model.items():
        points = [
            Point(row[place], row["perplexity"], row["low"], row["high"],
                  f"{name}, positions {row['from']:,} to {row['to']:,}: {row['perplexity']:,.2f}, "
                  f"95 % interval {row['low']:,.2f} to {row['high']:,.2f}, {row['tokens']:,} tokens")
            for row in rows
        ]  # fmt: skip
        if points:  # not every model was asked at the greatest length
            lines.append(Line(name, model_color(names.index(name)), points))
    values = [point.y for line in lines for point in line.points]
    marks = [(limit, f"context of {names[0]}")] if limit else []
    axes = Axes(x_label=label, y_log=max(values) > _LOGARITHMIC * min(values), marks=marks)
    kind = task.partition("/")[2]
    caption = _NAMES.get(kind, kind).format(length=length_label(longest or 0))
    words = "; ".join(f"{line.name} {line.points[0].y:,.1f} to {line.points[-1].y:,.1f}" for line in lines)
    return figure(line_chart(lines, axes, f"Perplexity {caption}, from first to last: {words}."), escape(caption))


def _numbers(by_model: Mapping[str, Rows], names: Sequence[str]) -> str:
    cells = [
        [f"{row['length']:,}", model_tag(name, names.index(name)), f"{row['from']:,} to {row['to']:,}",
         f"{row['perplexity']:,.2f} <small>[{row['low']:,.2f}, {row['high']:,.2f}]</small>",
         f"{row['tokens']:,}", f"{row['windows']:,}"]
        for name, rows in by_model.items()
        for row in rows
    ]  # fmt: skip
    return table(["length", "model", "positions", "perplexity", "tokens", "windows"], cells)
