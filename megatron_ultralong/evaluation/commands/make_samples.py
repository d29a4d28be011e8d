"""`tools/evaluate.py make`: samples of tasks at exact lengths, as JSON Lines that RULER's scripts read too.

Tasks whose samples do not depend on each other are made by several processes, in parts of about four million tokens.
A part is a file of its own until all of its task and length are there, so that a killed command goes on where it was.
What is there already, made from the same things, is kept.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from megatron_ultralong.errors import UserError, raise_problems
from megatron_ultralong.evaluation.commands.make_parts import Recipe, Sheet, make_sheets
from megatron_ultralong.evaluation.registry import Task, find_tasks, grid_lengths
from megatron_ultralong.files import disk_errors_named, writable

logger = logging.getLogger(__name__)


def make(
    recipe: Recipe,
    *,
    task: tuple[str, ...],
    lengths: tuple[int, ...],
    output: Path,
    grid: int = 40,
    workers: int | None = None,
) -> None:
    """Make samples of tasks at exact lengths for a tokenizer: OUTPUT/TASK/LENGTH.jsonl.

    Args:
        recipe: what they are made from.
        task: names such as ruler/niah_single_1, needles, recall; ruler alone stands for all 13 of its tasks.
        lengths: tokens that prompt and answer may take together. Needles are made at --grid lengths up to it where one
            is given, else at those given.
        output: folder for the samples.
        grid: lengths of needles up to the one in --lengths; 1: that one alone.
        workers: processes; as many as cores by default.
    """
    given = {"samples": recipe.samples, "depths": recipe.depths, "trials": recipe.trials, "grid": grid}
    for name, value in given.items():
        if value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    if not lengths or min(lengths) < 1:
        raise UserError(f"--lengths: {min(lengths, default='nothing')} is no length; give numbers of tokens above 0.")
    if not writable(output):
        raise UserError(f"--output is {output}, where nothing can be written; name another folder.")
    found = find_tasks(task)
    for each in found:
        if each.make is None:
            raise UserError(f"--task {each.name}: its samples are not made here; it is only scored.")
    sheets = sheets_of(found, lengths, grid)
    with disk_errors_named(output):
        made, skipped = make_sheets(sheets, recipe, output, workers or os.cpu_count() or 1)
    for sheet, why in skipped:
        if sheet.optional:
            logger.info("left out of the grid: %s", why)
    logger.info("%d files of samples are in %s.", made, output)
    raise_problems(output, [why for sheet, why in skipped if not sheet.optional])


def sheets_of(tasks: Iterable[Task], lengths: Iterable[int], grid: int) -> list[Sheet]:
    """The files of tasks at lengths; a grid's one length stands for `grid` lengths up to it."""
    asked = tuple(sorted(set(lengths)))
    return [Sheet(task.name, length, is_grid) for task in tasks for length, is_grid in _lengths(task, asked, grid)]


def _lengths(task: Task, lengths: tuple[int, ...], grid: int) -> list[tuple[int, bool]]:
    """A task's lengths, and for each whether it is only a point of a grid, which may be left out."""
    if not task.grid or len(lengths) > 1 or grid == 1:
        return [(length, False) for length in lengths]
    return [(length, length != lengths[0]) for length in grid_lengths(lengths[0], grid)]
