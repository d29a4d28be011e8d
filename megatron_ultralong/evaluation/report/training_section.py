"""The report's curves of training: loss and gradient norm of the steps, losses and needles of the validations."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_ultralong.evaluation.report.line_chart import Axes, Line, Point, line_chart
from megatron_ultralong.evaluation.report.markup import details, figure, section, table, text
from megatron_ultralong.evaluation.report.scale import model_color
from megatron_ultralong.evaluation.report.stage_curves import Series, Stage

_MOST_POINTS = 400
_FIELDS = (("loss", "loss, nats a token"), ("grad_norm", "gradient norm"))
_KINDS = (("loss", "validation loss, nats a token"), ("needles", "share of needles found"))


def training_section(curves: Mapping[str, Stage]) -> str:
    """Loss and gradient norm by step, a curve a stage, and what validations found."""
    charts, validated = [], []
    for index, (stage, rows) in enumerate(curves.items()):
        for field, caption in _FIELDS:
            charts.append(_chart(stage, caption, {stage: rows.of_steps(field)}, index + 2))
        for kind, caption in _KINDS:
            if lines := rows.of_validations(kind):
                charts.append(_chart(stage, caption, lines, 0))
                validated += [_row(stage, kind, name, series) for name, series in lines.items()]
    cells = [
        [text(stage), f"{len(rows.steps):,}", f"{losses[0][1]:.3f}", f"{losses[-1][1]:.3f}"]
        for stage, rows in curves.items()
        if (losses := rows.of_steps("loss"))
    ]
    head = ["stage", "validated", "at first", "best", "after step", "at last"]
    return section(
        "training",
        "Training",
        "How the model was made: metrics.jsonl of each stage.",
        '<div class="side two">' + "".join(charts) + "</div>",
        table(["stage", "steps", "first loss", "last loss"], cells),
        details("The numbers of validation", table(head, validated)) if validated else "",
    )


def _chart(stage: str, caption: str, lines: Mapping[str, Series], color: int) -> str:
    """Some curves of one stage; one that has a name of its own is named by it."""
    drawn, words = [], []
    for place, (name, series) in enumerate(lines.items()):
        kept = series[:: -(-len(series) // _MOST_POINTS)]
        points = [Point(step, value, words=f"{name}, step {step}: {value:.4g}") for step, value in kept]
        drawn.append(Line(name, model_color(color + place), points))
        own = "" if name == stage else f"{name} "
        words.append(f"{own}{points[0].y:.3f} at first, {points[-1].y:.3f} at last")
    title = f"{caption} of {stage}: {'; '.join(words)}"
    tags = "" if len(drawn) == 1 and drawn[0].name == stage else f"<br/>{_legend(drawn)}"
    return figure(line_chart(drawn, Axes(x_label="step", x_scale="steps"), title), f"{text(stage)}: {caption}{tags}")


def _legend(lines: list[Line]) -> str:
    """The lines' colours; names are people's."""
    return " ".join(
        f'<span class="model"><i style="background:{line.color}"></i>{text(line.name)}</span>' for line in lines
    )


def _row(stage: str, kind: str, name: str, series: Series) -> list[str]:
    best = (max if kind == "needles" else min)(series, key=lambda point: point[1])
    numbers = [f"{value:.4f}" for value in (series[0][1], best[1])]
    return [text(stage), text(f"{kind} {name}"), *numbers, f"{best[0]:,}", f"{series[-1][1]:.4f}"]
