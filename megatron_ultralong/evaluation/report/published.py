"""Scores that others have published, to stand beside ours: never measured here, always marked so.

Source: "From 128K to 4M: Efficient Training of Ultra-Long Context Large Language Models", arXiv 2504.06214. "<128K" is
the mean over RULER's lengths from 4K to 128K, and so on; LV-Eval's are means over its levels from 16K words;
InfiniteBench's is the mean over its tasks. All models have 8B parameters.
"""

from __future__ import annotations

from typing import Any

SOURCE = "arXiv 2504.06214"

COLUMNS = (
    ("ruler", "<128K"),
    ("ruler", "<512K"),
    ("ruler", "<1M"),
    ("lveval", "<128K"),
    ("lveval", "<256K"),
    ("infinitebench", "all"),
    ("short", "MMLU"),
    ("short", "MMLU-Pro"),
    ("short", "MATH"),
    ("short", "GSM8K"),
    ("short", "HumanEval"),
    ("short", "average"),
)
"""Family and average."""

ROWS = {
    "Llama-3.1-8B-Instruct": (88.3, 68.2, 61.3, 26.55, 23.32, 24.66, 64.83, 44.33, 47.22, 81.34, 69.51, 61.45),
    "Gradient-1048k": (
        82.4, 79.8, 77.8, 14.14, 13.48, 28.60, 48.33, 34.15, 15.12, 53.22, 35.97, 37.36
    ),
    "ProLong-512k": (
        88.9, 79.6, 71.2, 25.59, 24.65, 23.54, 65.21, 40.23, 17.16, 71.11, 10.36, 40.81
    ),
    "UltraLong-1M": (
        86.6, 81.6, 79.1, 28.07, 27.02, 32.14, 66.99, 42.44, 55.10, 79.53, 68.29, 62.47
    ),
    "UltraLong-2M": (
        85.0, 80.2, 78.2, 30.03, 28.90, 32.49, 67.31, 40.55, 51.36, 79.00, 67.07, 61.06
    ),
    "UltraLong-4M": (
        84.2, 80.0, 78.0, 29.09, 28.13, 30.38, 65.14, 43.28, 50.92, 77.71, 67.68, 60.95
    ),
}  # fmt: skip
"""Model -> its scores, 0 to 100, in the order of COLUMNS."""


def published(family: str) -> list[dict[str, Any]]:
    """Rows {model, source, scores: {average: score}} of a family; none where the paper has none."""
    places = [(place, name) for place, (its, name) in enumerate(COLUMNS) if its == family]
    return [
        {"model": model, "source": SOURCE, "scores": {name: scores[place] for place, name in places}}
        for model, scores in ROWS.items()
        if places
    ]
