"""Recall in a short text: a key anywhere in it, or three of which one is asked for: what the quickstart measures."""

from __future__ import annotations

from megatron_ultralong.evaluation.benchmarks import needle_kinds
from megatron_ultralong.evaluation.benchmarks.needles import grid_task
from megatron_ultralong.evaluation.registry import Task


def tasks() -> list[Task]:
    """Both."""
    return [
        grid_task("recall", needle_kinds.recall_one, 32, grid=False),
        grid_task("recall/three", needle_kinds.recall_three, 32, grid=False),
    ]
