"""The report's heatmaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from megatron_ultralong.evaluation.report.heatmap import Grid, heatmap_svg
from megatron_ultralong.evaluation.report.markup import (
    details,
    figure,
    model_tag,
    score_cell,
    section,
    table,
    task_label,
)
from megatron_ultralong.evaluation.report.scale import length_label, score_color

Contexts = Mapping[str, int | None]


def needle_section(grids: Mapping[str, Mapping[str, Grid]], contexts: Contexts, names: Sequence[str]) -> str:
    """A heatmap a task and model, and their numbers."""
    parts = []
    for task, by_model in grids.items():
        pictures = [
            figure(heatmap_svg(grid, contexts[names[0]], _words(task, name, grid)),
                   f"{model_tag(name, names.index(name))} <small>{_summary(grid)}</small>")
            for name, grid in by_model.items()
        ]  # fmt: skip
        head = f"<h3>{escape(task_label(task))}</h3>" if len(grids) > 1 else ""
        numbers = "".join(_numbers(name, grid) for name, grid in by_model.items())
        parts += [f'{head}<div class="side">' + "".join(pictures) + "</div>", details("The numbers", numbers)]
    limit = contexts[names[0]]
    dashed = f" The dashed line is the context of {escape(names[0])}, {length_label(limit)} tokens." if limit else ""
    return section(
        "needles",
        "Needles",
        "Something told once, somewhere in a long text, and asked for at its end. Down: how deep it lies; across: how "
        f"long the prompt is. A cell is the share of prompts answered right.{dashed}",
        _key(),
        *parts,
    )


def _key() -> str:
    stops = ", ".join(score_color(score) for score in range(0, 101, 25))
    return f'<p class="key">0 % <i style="background:linear-gradient(90deg, {stops})"></i> 100 %</p>'


def _summary(grid: Grid) -> str:
    scores = [row["score"] for row in grid]
    samples = sum(row["samples"] for row in grid)
    return f"{sum(scores) / len(scores):.1f} % over all cells, {samples:,} prompts"


def _words(task: str, name: str, grid: Grid) -> str:
    longest = max(row["length"] for row in grid)
    at_end = [row["score"] for row in grid if row["length"] == longest]
    return f"{task}, {name}: {_summary(grid)}; {sum(at_end) / len(at_end):.1f} % at {length_label(longest)} tokens"


def _numbers(name: str, grid: Grid) -> str:
    lengths, cells = sorted({row["length"] for row in grid}), {(row["depth"], row["length"]): row for row in grid}
    rows = [
        [f"{depth:.0%}", *(score_cell(cells.get((depth, length))) for length in lengths)]
        for depth in sorted({row["depth"] for row in grid})
    ]
    return table([escape(name), *map(length_label, lengths)], rows, "scores")
