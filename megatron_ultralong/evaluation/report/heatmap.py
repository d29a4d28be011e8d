"""Needles by depth and length: as inline SVG for the page, and all models in one PNG for papers and READMEs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from megatron_ultralong.evaluation.report.scale import (
    COLORS,
    INK,
    MUTED,
    STOPS,
    length_label,
    score_color,
    short_label,
    spread_labels,
    text_color,
)

WIDTH, LEFT, RIGHT, TOP = 360, 40, 356, 4
_MOST_NUMBERED = 9
_SCALE = LinearSegmentedColormap.from_list("found", [tuple(part / 255 for part in stop) for stop in STOPS], N=256)
_COLUMNS = 2

Grid = Sequence[Mapping[str, Any]]
"""Rows {length, depth, score, samples}."""


def heatmap_svg(grid: Grid, limit: int | None, title: str) -> str:
    """An <svg> element.

    Args:
        grid: the cells.
        limit: length after which a dashed line stands: the reference's context.
        title: what it shows, for those who cannot see it.
    """
    lengths, depths = _sides(grid)
    wide, tall = (RIGHT - LEFT) / len(lengths), max(14.0, min(26.0, 200 / len(depths)))
    bottom = TOP + tall * len(depths)
    parts = []
    for row in grid:
        x, y = LEFT + wide * lengths.index(row["length"]), TOP + tall * depths.index(row["depth"])
        words = f"{row['score']:.0f} % of {row['samples']} found at {row['length']:,} tokens, depth {row['depth']:.0%}"
        parts.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{wide:.2f}" height="{tall:.2f}" fill="{score_color(row["score"])}">'
            f"<title>{escape(words)}</title></rect>"
        )
        if len(lengths) <= _MOST_NUMBERED:
            parts.append(
                f'<text x="{x + wide / 2:.1f}" y="{y + tall / 2 + 3.6:.1f}" text-anchor="middle" class="in" '
                f'style="fill:{text_color(row["score"])}">{row["score"]:.0f}</text>'
            )
    parts += [
        f'<text x="{LEFT - 6}" y="{TOP + tall * (place + 0.5) + 3.6:.1f}" text-anchor="end">{depth:.0%}</text>'
        for place, depth in enumerate(depths)
    ]
    for place in spread_labels(lengths, 6):
        x = LEFT + wide * (place + 0.5)
        anchor = "end" if x > RIGHT - 18 else "middle"
        label = short_label(lengths[place])
        at = RIGHT if anchor == "end" else x
        parts.append(f'<text x="{at:.1f}" y="{bottom + 15:.1f}" text-anchor="{anchor}">{label}</text>')
    within = sum(length <= limit for length in lengths) if limit else 0
    if 0 < within < len(lengths):
        x = LEFT + wide * within
        for kind in ("under", "edge"):
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom:.1f}" class="{kind}" />')
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 22:.0f}" role="img" class="heatmap"><title>{escape(title)}</title>'
        + "".join(parts)
        + "</svg>"
    )


def _sides(grid: Grid) -> tuple[list[int], list[float]]:
    return sorted({row["length"] for row in grid}), sorted({row["depth"] for row in grid})


def heatmap_png(grids: Mapping[str, Grid], contexts: Mapping[str, int | None], headline: str, words: str) -> bytes:
    """A PNG with a panel a model, two beside each other.

    Args:
        grids: model -> its cells, the reference first.
        contexts: model -> tokens of its context; the reference's is marked in every panel.
        headline: above all.
        words: a line below it.
    """
    rows = -(-len(grids) // _COLUMNS)
    columns = min(len(grids), _COLUMNS)
    high = 1.25 + 3.85 * rows
    figure = Figure(figsize=(0.9 + 4.7 * columns, high), dpi=160, facecolor="white")
    layout = figure.add_gridspec(
        rows, columns + 1, width_ratios=[1.0] * columns + [0.035], left=0.95 / (0.9 + 4.7 * columns), right=0.93,
        top=1 - 1.45 / high, bottom=0.6 / high, wspace=0.1, hspace=0.62,
    )  # fmt: skip
    limit = contexts[next(iter(grids))]
    for place, (name, grid) in enumerate(grids.items()):
        axes = figure.add_subplot(layout[place // columns, place % columns])
        image = _panel(axes, grid, limit)
        _title(axes, name, grid, contexts[name], COLORS[place % len(COLORS)])
        axes.set_xlabel("length of prompt and answer in tokens", color=MUTED)
        if place % columns:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("depth of the needle", color=MUTED)
    bar = figure.colorbar(image, cax=figure.add_subplot(layout[0, -1]), format="%.0f %%")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9, labelcolor=MUTED)
    left = 0.95 / (0.9 + 4.7 * columns)
    figure.text(left, 1 - 0.36 / high, headline, fontsize=15 if columns > 1 else 12, fontweight="bold", color=INK)
    figure.text(left, 1 - 0.65 / high, words, fontsize=10 if columns > 1 else 8.5, color=MUTED)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _title(axes: Axes, name: str, grid: Grid, context: int | None, color: str) -> None:
    longest = max(row["length"] for row in grid)
    at_end = [row["score"] for row in grid if row["length"] == longest]
    words = f"{sum(at_end) / len(at_end):.0f} % found at {length_label(longest)} tokens"
    if context:
        words = f"context {length_label(context)}; {words}"
    axes.set_title(words, loc="left", fontsize=10, color=MUTED, pad=7)
    axes.text(0, 1.115, name, transform=axes.transAxes, fontsize=13, fontweight="bold", color=color)


def _panel(axes: Axes, grid: Grid, limit: int | None) -> Any:
    lengths, depths = _sides(grid)
    scores = {(row["depth"], row["length"]): row["score"] for row in grid}
    values = [[scores.get((depth, length), float("nan")) for length in lengths] for depth in depths]
    few = len(lengths) <= 12
    image = axes.pcolormesh(values, cmap=_SCALE, vmin=0, vmax=100, edgecolor="white", linewidth=1.2 if few else 0.3)
    axes.invert_yaxis()
    shown = spread_labels(lengths, 12 if few else 9)
    axes.set_xticks([place + 0.5 for place in shown], [short_label(lengths[place]) for place in shown])
    axes.set_yticks([place + 0.5 for place in range(len(depths))], [f"{depth:.0%}" for depth in depths])
    axes.tick_params(axis="x", labelrotation=45 if few and len(lengths) > 6 else 0)
    within = sum(length <= limit for length in lengths) if limit else 0
    if 0 < within < len(lengths):
        axes.axvline(within, color=INK, linewidth=1.6, linestyle=(0, (4, 2.5)))
    if few:
        for (depth, length), score in scores.items():
            x, y = lengths.index(length) + 0.5, depths.index(depth) + 0.52
            axes.text(x, y, f"{score:.0f}", ha="center", va="center", fontsize=7.5, color=text_color(score))
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED)
    return image
