"""Curves: points where arithmetic puts them, round ticks, labels that do not meet."""

import itertools
import xml.etree.ElementTree as ET

import pytest

from megatron_ultralong.evaluation.report.line_chart import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axes,
    Line,
    Point,
    line_chart,
    ticks,
)


def drawn(lines: list[Line], **axes: object) -> ET.Element:
    return ET.fromstring(line_chart(lines, Axes(x_label="tokens <", **axes), "what & why"))


def test_points_lie_where_they_should():
    points = [Point(4096, 0.0, words="a < b"), Point(16384, 50.0), Point(65536, 100.0)]
    chart = drawn([Line("m", "red", points)], y_range=(0, 100), marks=[(16384, "here"), (1 << 20, "outside")])
    assert chart.findtext("title") == "what & why"
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in chart.iter("circle")]
    assert circles == [(LEFT, BOTTOM), ((LEFT + RIGHT) / 2, (BOTTOM + TOP) / 2), (RIGHT, TOP)]
    texts = [text.text for text in chart.iter("text")]
    assert texts == ["0", "25", "50", "75", "100", "4,096", "16K", "64K", "tokens <", "here"]


def test_a_band_goes_there_and_back():
    chart = drawn([Line("m", "red", [Point(1, 2, 1, 3), Point(2, 2, 1, 3)])], y_range=(0, 4))
    corners = [tuple(map(float, pair.split(","))) for pair in next(chart.iter("polygon")).attrib["points"].split()]
    assert [x for x, _ in corners] == [LEFT, RIGHT, RIGHT, LEFT]
    assert corners[0][1] < corners[3][1]  # the upper edge first; y grows downwards


@pytest.mark.parametrize(
    ("low", "high", "log", "wanted"),
    [
        (0, 100, False, [0, 25, 50, 75, 100]),
        (1.93, 3.6, False, [2, 2.5, 3, 3.5]),
        (0, 0.31, False, [0, 0.1, 0.2, 0.3]),
        (5.5, 60, True, [10, 20, 50]),
        (1, 1e6, True, [1, 10, 100, 1000, 10000, 100000, 1000000]),
        (21, 24, True, [21, 22, 23, 24]),
    ],
)
def test_ticks_are_round(low, high, log, wanted):
    assert ticks(low, high, log) == pytest.approx(wanted)


def test_labels_do_not_meet():
    chart = drawn([Line("m", "red", [Point(1024 * place, 1.0) for place in range(1, 41)])])
    boxes = []
    for text in chart.iter("text"):
        if float(text.attrib["y"]) == BOTTOM + 15:
            x, width = float(text.attrib["x"]), 6.2 * len(text.text or "")
            left = x - (width if text.attrib["text-anchor"] == "end" else width / 2)
            boxes.append((left, left + width))
    assert len(boxes) > 3
    assert all(one[1] < other[0] for one, other in itertools.pairwise(boxes))


def test_one_point_and_one_value_are_enough():
    assert len(list(drawn([Line("m", "red", [Point(256, 7.0)])]).iter("circle"))) == 1
    steps = drawn([Line("m", "red", [Point(1, 7.0), Point(2, 7.0)])], x_scale="steps")
    assert next(steps.iter("polyline")).attrib["points"].startswith(f"{LEFT:.1f},")
