"""Curves of training as one PNG: losses of steps and validations, losses by bucket of context, needles found."""

from __future__ import annotations

import io
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_ultralong.evaluation.report.scale import COLORS, GRID, INK, MUTED, length_label
from megatron_ultralong.evaluation.report.stage_curves import Series, Stage

_WIDE, _HIGH = 4.6, 3.7
"""Inches of a panel."""
_STYLES = ("-", "--", ":", "-.")


def curves_png(stages: Mapping[str, Stage]) -> bytes:
    """A row a stage; the panels that a stage has nothing for are left out."""
    rows = [_panels(stage) for stage in stages.values()]
    columns = max(map(len, rows))
    figure = Figure(figsize=(columns * _WIDE, len(rows) * _HIGH), dpi=130, facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for name, panels, axes_of_row in zip(stages, rows, grid, strict=True):
        for axes in axes_of_row[len(panels) :]:
            axes.set_axis_off()
        for axes, (label, lines) in zip(axes_of_row, panels, strict=False):
            _draw(axes, label, lines)
        if len(stages) > 1:
            axes_of_row[0].set_title(name, loc="left", fontsize=11, fontweight="bold", color=INK)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


Lines = list[tuple[str, str, str, Series]]
"""Name, colour, style, values."""


def _panels(stage: Stage) -> list[tuple[str, Lines]]:
    losses = stage.of_validations("loss")
    sources = [name for name in losses if "/" not in name]
    colors = {name: COLORS[(place + 1) % len(COLORS)] for place, name in enumerate(sources)}
    first: Lines = [("training", "#9aa5b1", "-", stage.of_steps("loss"))]
    first += [(f"held out: {name}", colors[name], "-", losses[name]) for name in sources]
    panels = [("loss, nats a token", first)]
    buckets: Lines = []
    for source in sources:
        own = [name for name in losses if name.startswith(f"{source}/")]
        for name, style in zip(own, _STYLES * len(own), strict=False):
            low, _, high = name.rpartition("/")[2].partition("-")
            span = f"{length_label(int(low))} to {length_label(int(high))} tokens of context"
            buckets.append((f"{source}, {span}" if len(sources) > 1 else span, colors[source], style, losses[name]))
    if buckets:
        panels.append(("held-out loss by tokens of context", buckets))
    if needles := stage.of_validations("needles"):
        lines: Lines = [
            (f"{length_label(int(length))} tokens", COLORS[place % len(COLORS)], "-", series)
            for place, (length, series) in enumerate(needles.items())
        ]
        panels.append(("share of needles found", lines))
    return panels


def _draw(axes: Axes, label: str, lines: Lines) -> None:
    for name, color, style, series in lines:
        mark = "" if name == "training" else "."
        axes.plot(*zip(*series, strict=True), color=color, linestyle=style, marker=mark, label=name, linewidth=1.4)
    if "needles" in label:
        axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("step", color=MUTED, fontsize=9)
    axes.set_ylabel(label, color=MUTED, fontsize=9)
    axes.tick_params(labelsize=8, labelcolor=MUTED, color=GRID)
    axes.grid(color=GRID, linewidth=0.6)
    axes.legend(fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
