"""RULER's 13 tasks by name (scripts/synthetic.yaml and data/synthetic/constants.py of NVIDIA/RULER c3f5e3b)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_ultralong.evaluation.benchmarks.ruler.asking import Asking, each_sample
from megatron_ultralong.evaluation.benchmarks.ruler.common_words import draw_common_words
from megatron_ultralong.evaluation.benchmarks.ruler.frequent_words import draw_frequent_words
from megatron_ultralong.evaluation.benchmarks.ruler.niah import Needles, draw_needles
from megatron_ultralong.evaluation.benchmarks.ruler.questions import draw_question
from megatron_ultralong.evaluation.benchmarks.ruler.ruler_scoring import match_all, match_part, read_predictions
from megatron_ultralong.evaluation.benchmarks.ruler.tracking import draw_tracking
from megatron_ultralong.evaluation.registry import MakeOptions, Task
from megatron_ultralong.evaluation.samples import Sample

_NEEDLES = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", value="uuids"),
    "niah_multikey_1": Needles("essay", keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", key="uuids", value="uuids"),
    "niah_multivalue": Needles("essay", values=4),
    "niah_multiquery": Needles("essay", queries=4),
}
EFFECTIVE = 85.6
"""An average above which a length counts as effective: Llama-2-7B's at 4K."""


def tasks() -> list[Task]:
    """All of them, in RULER's order."""
    found = [_task(name, 128, functools.partial(draw_needles, needles=needles)) for name, needles in _NEEDLES.items()]
    return [
        *found,
        _task("vt", 30, draw_tracking),
        _task("cwe", 120, draw_common_words),
        _task("fwe", 50, draw_frequent_words),
        _task("qa_1", 32, functools.partial(draw_question, kind="squad"), match_part),
        _task("qa_2", 32, functools.partial(draw_question, kind="hotpotqa"), match_part),
    ]


def _task(
    name: str, budget: int, draw: Callable[[Asking], Sample], score: Callable[[str, Sample], float] = match_all
) -> Task:
    full = f"ruler/{name}"

    def make(options: MakeOptions) -> Iterator[Sample]:
        return each_sample(draw, full, budget, options)

    def read(path: Path) -> Iterator[tuple[str, Sample]]:
        return read_predictions(path, full)

    return Task(name=full, budget=budget, score=score, make=make, read=read, split=True)
