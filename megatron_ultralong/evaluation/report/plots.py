"""The report's pictures, as PNG bytes.

One colour per model throughout, and one scale for every heatmap, from "lost" (coral) over sand to "found"
(teal): its ends differ in lightness as well as hue, so that it also reads in grey and with a colour deficiency.
Drawn on matplotlib's Figure directly: no window, no global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
COLORS = ("#d1573a", "#0b6e69", "#3b5b92", "#8a6d1f")
"""Of the models in order: the base, the extended, further ones."""

_SCALE = LinearSegmentedColormap.from_list("found", ["#c8452b", "#e8926a", "#f6e3bf", "#6fb7a7", "#0b5f5b"], N=256)
_MOST_LABELLED = 12
_HEADLINE = "A five-digit key, hidden in real text: how often is it read back?"


def length_label(tokens: int) -> str:
    """A length as people write it: 256, 2,048, 128K, 1M (powers of two)."""
    if tokens >= 1 << 20 and tokens % (1 << 20) == 0:
        return f"{tokens >> 20}M"
    if tokens >= 1 << 14 and tokens % (1 << 10) == 0:
        return f"{tokens >> 10}K"
    return f"{tokens:,}"


def heatmaps(results: Mapping[str, Any], models: Sequence[str]) -> bytes:
    """Passkey score by depth (rows) and length (columns), one panel a model, side by side.

    Args:
        results: see `evaluate.evaluate`.
        models: names in order; the first one's context length is marked in every panel.
    """
    figure = _figure(0.9 + 4.7 * len(models), 4.9)
    grid = figure.add_gridspec(
        1,
        len(models) + 1,
        width_ratios=[1.0] * len(models) + [0.035],
        left=0.08,
        right=0.93,
        top=0.70,
        bottom=0.14,
        wspace=0.1,
    )
    limit = results[models[0]]["context_length"]
    for column, name in enumerate(models):
        axes = figure.add_subplot(grid[0, column])
        image = _heatmap(axes, results[name]["passkey"], limit)
        _panel_title(axes, name, results, COLORS[column % len(COLORS)])
        axes.set_xlabel("length of the prompt in tokens", color=MUTED)
        if column:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("depth of the needle", color=MUTED)
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[0, -1]), format=PercentFormatter(1.0))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9, labelcolor=MUTED)
    figure.text(0.08, 0.925, _HEADLINE, fontsize=15, fontweight="bold", color=INK)
    dashed = f"Dashed line: context of the {models[0]} model, {length_label(limit)} tokens."
    figure.text(0.08, 0.868, f"Exact match of the greedy answer. {dashed}", fontsize=10, color=MUTED)
    return _png(figure)


def _panel_title(axes: Axes, name: str, results: Mapping[str, Any], color: str) -> None:
    model, target = results[name], results["target_length"]
    axes.set_title(
        f"context {length_label(model['context_length'])}; "
        f"{model['passkey_at_target']:.0%} found at {length_label(target)} tokens",
        loc="left",
        fontsize=10,
        color=MUTED,
        pad=7,
    )
    axes.text(0, 1.115, name.capitalize(), transform=axes.transAxes, fontsize=13, fontweight="bold", color=color)


def _heatmap(axes: Axes, rows: Sequence[Mapping[str, Any]], limit: int) -> Any:
    lengths = sorted({row["length"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    scores = {(row["depth"], row["length"]): row["score"] for row in rows}
    values = [[scores[depth, length] for length in lengths] for depth in depths]
    image = axes.pcolormesh(values, cmap=_SCALE, vmin=0.0, vmax=1.0, edgecolor="white", linewidth=1.2)
    axes.invert_yaxis()
    step = math.ceil(len(lengths) / _MOST_LABELLED)
    axes.set_xticks([index + 0.5 for index in range(0, len(lengths), step)], [length_label(n) for n in lengths[::step]])
    axes.set_yticks([index + 0.5 for index in range(len(depths))], [f"{depth:.0%}" for depth in depths])
    axes.tick_params(axis="x", labelrotation=45 if len(lengths) > 6 else 0)
    within = sum(length <= limit for length in lengths)
    if 0 < within < len(lengths):
        axes.axvline(within, color=INK, linewidth=1.6, linestyle=(0, (4, 2.5)))
    if len(lengths) <= _MOST_LABELLED:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                dark = value < 0.2 or value > 0.75
                axes.text(
                    column + 0.5,
                    row + 0.52,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if dark else INK,
                    alpha=0.9,
                )
    _plain(axes)
    return image


def perplexity_lines(results: Mapping[str, Any], models: Sequence[str]) -> bytes:
    """Perplexity by position, one step line a model; positions on a logarithmic axis."""
    figure = _figure(7.6, 3.9)
    axes = figure.add_axes((0.09, 0.15, 0.74, 0.78))
    everything = []
    for index, name in enumerate(models):
        rows = results["perplexity"][name]
        centres = [math.sqrt(max(row["from"], row["to"] / 2) * row["to"]) for row in rows]
        values = [row["perplexity"] for row in rows]
        everything += values
        color = COLORS[index % len(COLORS)]
        axes.plot(centres, values, color=color, linewidth=2.2, marker="o", markersize=5.5)
        axes.annotate(
            name,
            (centres[-1], values[-1]),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontweight="bold",
        )
    axes.set_xscale("log", base=2)
    labels = [f"{length_label(row['from'])}-{length_label(row['to'])}" for row in rows]
    axes.set_xticks(centres, labels)
    if max(everything) > 8 * min(everything):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.minorticks_off()
    axes.grid(axis="y", color=GRID)
    limit = results[models[0]]["context_length"]
    if rows[0]["from"] < limit < rows[-1]["to"]:
        axes.axvline(limit, color=INK, linewidth=1.4, linestyle=(0, (4, 2.5)))
        axes.text(
            limit,
            1.02,
            f"{models[0]}'s context",
            transform=axes.get_xaxis_transform(),
            ha="center",
            color=MUTED,
            fontsize=9,
        )
    axes.set_xlabel("position in the document, in tokens", color=MUTED)
    axes.set_ylabel("perplexity", color=MUTED)
    _plain(axes)
    return _png(figure)


def short_task_bars(results: Mapping[str, Any], models: Sequence[str]) -> bytes:
    """Accuracy of the short task, one bar a model."""
    figure = _figure(7.6, 0.7 + 0.55 * len(models))
    axes = figure.add_axes((0.16, 0.06, 0.72, 0.88))
    for index, name in enumerate(models):
        score = results[name]["short_task"]
        axes.barh(index, 1.0, height=0.62, color=GRID)
        axes.barh(index, score, height=0.62, color=COLORS[index % len(COLORS)])
        axes.text(1.015, index, f"{score:.1%}", va="center", color=INK, fontsize=11, fontweight="bold")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_yticks(range(len(models)), models)
    axes.set_xticks([])
    _plain(axes)
    return _png(figure)


def training_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Loss (left) and gradient norm (right) by step, one line a stage."""
    figure = _figure(9.2, 3.5)
    for place, (field, label) in enumerate((("loss", "loss, nats a token"), ("grad_norm", "gradient norm"))):
        axes = figure.add_axes((0.07 + 0.5 * place, 0.16, 0.41, 0.76))
        for index, (name, rows) in enumerate(curves.items()):
            steps = [row["step"] for row in rows]
            axes.plot(
                steps, [row[field] for row in rows], color=COLORS[(index + 2) % len(COLORS)], linewidth=1.6, label=name
            )
        axes.set_xlabel("step", color=MUTED)
        axes.set_ylabel(label, color=MUTED)
        axes.grid(axis="y", color=GRID)
        axes.legend(frameon=False, fontsize=9)
        _plain(axes)
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=160, facecolor="white")


def _plain(axes: Axes) -> None:
    """No frame, quiet ticks."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED)
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
