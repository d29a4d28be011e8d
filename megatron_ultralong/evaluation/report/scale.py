"""What every picture of a report shares: colours of models and of scores, names of lengths.

One colour a model throughout. One scale for scores, from "lost" (coral) over sand to "found" (teal): its ends differ
in lightness as well as in hue, so that it also reads in grey and with a colour deficiency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
COLORS = ("#d1573a", "#0b8079", "#4a73b8", "#a07d1c", "#8a4fa3", "#5b6b2f")
"""Of the models in order; after the last they begin again."""
ON_DARK = ("#f08a6c", "#43b8ac", "#86a8e6", "#d9b44a", "#c795dd", "#a3b86c")
"""The same on a dark page."""
STOPS = ((0xC8, 0x45, 0x2B), (0xE8, 0x92, 0x6A), (0xF6, 0xE3, 0xBF), (0x6F, 0xB7, 0xA7), (0x0B, 0x5F, 0x5B))
"""Red, green and blue of scores 0, 25, 50, 75 and 100."""


def model_color(index: int) -> str:
    """Colour of the model in this place, as the style sheet's variable, which follows light and dark."""
    return f"var(--m{index % len(COLORS)})"


def score_color(score: float) -> str:
    """Background of a score from 0 to 100, as #rrggbb."""
    place = min(max(score, 0.0), 100.0) / 100 * (len(STOPS) - 1)
    left = min(int(place), len(STOPS) - 2)
    share = place - left
    parts = (round(a + share * (b - a)) for a, b in zip(STOPS[left], STOPS[left + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)


def text_color(score: float) -> str:
    """Colour of a text on that background: at least 4.5 to 1 by WCAG's contrast."""
    return max(("#ffffff", "#000000"), key=lambda color: contrast(color, score_color(score)))


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio of two colours, 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    parts = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def length_label(tokens: int) -> str:
    """A length as people write it: 256, 2,048, 128K, 1M (powers of two)."""
    if tokens >= 1 << 20 and tokens % (1 << 20) == 0:
        return f"{tokens >> 20}M"
    if tokens >= 1 << 14 and tokens % (1 << 10) == 0:
        return f"{tokens >> 10}K"
    return f"{tokens:,}"


def short_label(tokens: float) -> str:
    """A length on an axis, where others stand beside it: to about three digits."""
    if tokens < 10_000:
        return f"{tokens:,.0f}"
    if tokens < 1 << 20:
        return f"{tokens / 1024:.0f}K"
    return f"{tokens / (1 << 20):.2f}".rstrip("0").rstrip(".") + "M"


def spread_labels(lengths: Sequence[int], most: int) -> list[int]:
    """Places of at most `most` of these, all the same distance apart, the last among them: of 40 lengths to a round one
    every fifth is round too.
    """
    step = max(1, math.ceil((len(lengths) - 1) / (most - 1)))
    return list(range((len(lengths) - 1) % step, len(lengths), step))
