"""Which samples a report shows in full, and their texts: a few a task, those where models part or fail first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megatron_ultralong.evaluation.report.gathering import Cell, Key, Model, ordered_tasks
from megatron_ultralong.evaluation.run_folder import Answered

MOST_A_TASK = 6


@dataclasses.dataclass(frozen=True)
class Opened:
    """One sample and what models answered: model -> its line, in order; not all may have been asked."""

    task: str
    length: int
    answers: dict[str, Answered]


def open_samples(models: Sequence[Model], most: int = MOST_A_TASK) -> list[Opened]:
    """The samples to show, their texts read again from the runs' folders.

    Args:
        models: the runs.
        most: samples a task.
    """
    chosen = {(cell, key): place for place, (cell, key) in enumerate(_choose(models, most))}
    found: dict[int, Opened] = {}
    for model in models:
        for line in (line for run in model.runs for line in run.answers()):
            place = chosen.get(((line.task, line.length), (line.index, line.prompt_hash)))
            if place is not None:
                found.setdefault(place, Opened(line.task, line.length, {})).answers[model.name] = line
    return [found[place] for place in sorted(found)]


def _choose(models: Sequence[Model], most: int) -> list[tuple[Cell, Key]]:
    """By task: in turn one where the models part, one that all fail, one that all have right; long ones first."""
    tasks = ordered_tasks(models)
    by_task: dict[str, dict[str, list[tuple[Cell, Key]]]] = {task: {} for task in tasks}
    cells = {cell for model in models for cell in model.cells}
    for cell in sorted(cells, key=lambda cell: (tasks.index(cell[0]), -cell[1])):
        for key in dict.fromkeys(key for model in models for key in model.cells.get(cell, ())):
            scores = [model.cells[cell][key].score for model in models if key in model.cells.get(cell, {})]
            kind = "apart" if max(scores) - min(scores) > 0.5 else "failed" if max(scores) < 0.5 else "right"
            by_task[cell[0]].setdefault(kind, []).append((cell, key))
    chosen = []
    for kinds in by_task.values():
        queues = [_across_lengths(kinds.get(kind, [])) for kind in ("apart", "failed", "right")]
        taken: list[tuple[Cell, Key]] = []
        while len(taken) < most and any(queues):
            taken += [queue.pop(0) for queue in queues if queue]
        chosen += sorted(taken[:most], key=lambda sample: sample[0][1])
    return chosen


def _across_lengths(samples: Sequence[tuple[Cell, Key]]) -> list[tuple[Cell, Key]]:
    """One of each length in turn."""
    seen: dict[Cell, int] = {}
    turns = []
    for place, (cell, _) in enumerate(samples):
        seen[cell] = seen.get(cell, 0) + 1
        turns.append((seen[cell], place))
    return [samples[place] for _, place in sorted(turns)]
