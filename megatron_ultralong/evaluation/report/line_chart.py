"""Lines over lengths, positions or steps, as inline SVG that is sharp at any width and says each point's numbers.

Drawn 360 units wide, about a phone's width, so that its letters can be read there; on a wide page several stand side by
side. Colours of text and lines come from the page's style sheet, so that they follow light and dark.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Literal

from megatron_ultralong.evaluation.report.scale import short_label

WIDTH, HEIGHT = 360, 232
LEFT, RIGHT, TOP, BOTTOM = 40, 350, 20, 192
_MOST_DOTS = 60

Place = Callable[[float], float]
"""A value's place in the picture."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One point.

    Attributes:
        x: place: tokens or steps.
        y: value.
        low: of its interval; None for none.
        high: of its interval.
        words: what is said when it is pointed at.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """One model's, or one stage's."""

    name: str
    color: str
    points: Sequence[Point]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axes:
    """How values become places.

    Attributes:
        x_label: under the axis.
        x_scale: "lengths" is logarithmic, with lengths as labels.
        y_range: None: what the values span.
        y_log: logarithmic.
        marks: places on the x axis with a dashed line, and what they are.
    """

    x_label: str
    x_scale: Literal["lengths", "steps"] = "lengths"
    y_range: tuple[float, float] | None = None
    y_log: bool = False
    marks: Sequence[tuple[float, str]] = ()


def line_chart(lines: Sequence[Line], axes: Axes, title: str) -> str:
    """An <svg> element.

    Args:
        lines: at least one, each with at least one point.
        axes: their scales.
        title: what the picture shows, for those who cannot see it.
    """
    xs = sorted({point.x for line in lines for point in line.points})
    low, high = _y_range(lines, axes)

    def place_x(x: float) -> float:
        if xs[0] == xs[-1]:
            return (LEFT + RIGHT) / 2
        bend = math.log2 if axes.x_scale == "lengths" else float
        return LEFT + (RIGHT - LEFT) * (bend(x) - bend(xs[0])) / (bend(xs[-1]) - bend(xs[0]))

    def place_y(y: float) -> float:
        bend = math.log if axes.y_log else float
        return BOTTOM - (BOTTOM - TOP) * (bend(y) - bend(low)) / (bend(high) - bend(low))

    parts = [_y_axis(low, high, axes.y_log, place_y), _x_axis(xs, axes, place_x)]
    parts += [_mark(place_x(x), words) for x, words in axes.marks if xs[0] <= x <= xs[-1]]
    for line in lines:
        places = [(place_x(point.x), place_y(point.y)) for point in line.points]
        band = [(place_x(p.x), place_y(p.low), place_y(p.high)) for p in line.points
                if p.low is not None and p.high is not None]  # fmt: skip
        if len(band) > 1:
            corners = [(x, y) for x, _, y in band] + [(x, y) for x, y, _ in reversed(band)]
            parts.append(f'<polygon points="{_joined(corners)}" style="fill:{line.color}" opacity=".16" />')
        parts.append(f'<polyline points="{_joined(places)}" class="line" style="stroke:{line.color}" />')
        parts += _dots(line, places)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="chart"><title>{escape(title)}</title>'
        + "".join(parts)
        + "</svg>"
    )


def _y_range(lines: Sequence[Line], axes: Axes) -> tuple[float, float]:
    if axes.y_range:
        return axes.y_range
    values = [value for line in lines for p in line.points for value in (p.y, p.low, p.high) if value is not None]
    low, high = min(values), max(values)
    if axes.y_log:
        return low / 1.08, high * 1.08
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - room if low < 0 or low > room else 0.0, high + room


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values within a range, 3 to 6 of them where it can be."""
    if log:
        steps = [digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 5)]
        inside = [step for step in steps if low <= step <= high]
        if len(inside) > 6:
            inside = [step for step in inside if str(step).lstrip("0.").startswith("1")]
        if len(inside) >= 2:
            return inside
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 2.5, 5, 10) if digit * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _y_axis(low: float, high: float, log: bool, place_y: Place) -> str:
    parts = []
    for value in ticks(low, high, log):
        y = place_y(value)
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid" />')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{value:,.6g}</text>')
    return "".join(parts)


def _x_axis(xs: Sequence[float], axes: Axes, place_x: Place) -> str:
    if axes.x_scale == "lengths":
        shown = [(x, short_label(x)) for x in xs]
    else:
        shown = [(x, f"{x:,.0f}") for x in ticks(xs[0], xs[-1], False)] if xs[0] < xs[-1] else [(xs[0], f"{xs[0]:g}")]
    parts = []
    for x, words in _thinned(shown, place_x):
        place = place_x(x)
        anchor = "end" if place > RIGHT - 14 else "middle"
        parts.append(f'<text x="{min(place, RIGHT + 4):.1f}" y="{BOTTOM + 15}" text-anchor="{anchor}">{words}</text>')
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(axes.x_label)}</text>')
    return "".join(parts)


def _thinned(shown: Sequence[tuple[float, str]], place_x: object) -> list[tuple[float, str]]:
    """Labels that do not run into each other: from the last one backwards."""
    assert callable(place_x)
    kept: list[tuple[float, str]] = []
    free = math.inf
    for x, words in reversed(shown):
        width = 6.2 * len(words)
        right = place_x(x) + (4 if place_x(x) > RIGHT - 14 else width / 2)
        left = right - width
        if right <= free:
            kept.append((x, words))
            free = left - 6
    return kept[::-1]


def _mark(x: float, words: str) -> str:
    anchor = "end" if x > (LEFT + RIGHT) / 2 else "start"
    at = min(x + 10, RIGHT) if anchor == "end" else max(x - 10, LEFT)
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{BOTTOM}" class="mark" />'
        f'<text x="{at:.1f}" y="{TOP - 7}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def _dots(line: Line, places: Sequence[tuple[float, float]]) -> list[str]:
    if len(places) > _MOST_DOTS:
        return []
    return [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" style="fill:{line.color}">'
        f"<title>{escape(point.words)}</title></circle>"
        for (x, y), point in zip(places, line.points, strict=True)
    ]


def _joined(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
