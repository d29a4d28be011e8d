"""Recall in a short text: three keys anywhere in it, one asked for. The quickstart's measure of what a model keeps."""

from __future__ import annotations

from megatron_ultralong.evaluation.benchmarks import needle_kinds
from megatron_ultralong.evaluation.benchmarks.needles import grid_task
from megatron_ultralong.evaluation.registry import Task


def tasks() -> list[Task]:
    """The one."""
    return [grid_task("recall", needle_kinds.recall, 32, grid=False)]
