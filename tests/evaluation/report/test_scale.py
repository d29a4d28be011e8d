"""Colours that can be read on, and lengths as people write them."""

import pytest

from megatron_ultralong.evaluation.report.scale import (
    COLORS,
    ON_DARK,
    contrast,
    length_label,
    score_color,
    short_label,
    spread_labels,
    text_color,
)


def test_text_can_be_read_on_every_score():
    assert (contrast("#000000", "#ffffff"), contrast("#123456", "#123456")) == (21.0, 1.0)
    worst = min(contrast(text_color(tenth / 10), score_color(tenth / 10)) for tenth in range(1001))
    assert worst >= 4.5


def test_the_scale_runs_from_lost_to_found():
    assert [score_color(score) for score in (-5, 0, 50, 100, 101)] == [
        "#c8452b", "#c8452b", "#f6e3bf", "#0b5f5b", "#0b5f5b",
    ]  # fmt: skip


def test_lines_can_be_seen_on_either_page():
    assert len(COLORS) == len(ON_DARK)
    assert min(contrast(color, "#ffffff") for color in COLORS) >= 3
    assert min(contrast(color, "#14181d") for color in ON_DARK) >= 3


@pytest.mark.parametrize(
    ("tokens", "label", "short"),
    [(256, "256", "256"), (2048, "2,048", "2,048"), (131072, "128K", "128K"), (4194304, "4M", "4M"),
     (20000, "20,000", "20K"), (1572864, "1536K", "1.5M")],
)  # fmt: skip
def test_labels(tokens, label, short):
    assert (length_label(tokens), short_label(tokens)) == (label, short)


def test_spread_labels_are_evenly_apart_and_keep_the_end():
    assert spread_labels(range(40), 9) == [4, 9, 14, 19, 24, 29, 34, 39]
    assert spread_labels(range(41), 5) == [0, 10, 20, 30, 40]
    assert spread_labels([1], 5) == [0]
    assert spread_labels([1, 2], 5) == [0, 1]
