"""The samples that a run asks: files in the run's folder that it makes once, or files that were made before.

Making is the writer's, a task at a time; every process then reads the same files. A task and length that is too short
to be made is kept with its reason.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.interface import Backend
from megatron_ultralong.evaluation.commands.make_parts import Sheet, make_sheets
from megatron_ultralong.evaluation.commands.make_samples import sheets_of
from megatron_ultralong.evaluation.registry import Task
from megatron_ultralong.evaluation.run_folder import PROMPTS
from megatron_ultralong.evaluation.running.request import Request
from megatron_ultralong.evaluation.samples import Sample, read_samples, sample_path
from megatron_ultralong.files import disk_errors_named

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Skip:
    """Samples that were not asked, and why; `samples` None: all of task and length."""

    task: str
    length: int
    samples: int | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of samples; of a file that was given, those of the tasks and lengths asked for, empty: all."""

    path: Path
    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()

    def samples(self) -> Iterator[Sample]:
        """In order.

        Raises:
            UserError: a line is broken, or names no task.
        """
        for number, sample in enumerate(read_samples(self.path), start=1):
            if not sample.task:
                if len(self.tasks) != 1:
                    raise UserError(f"{self.path}, line {number}: it names no task; give one --task for all of them.")
                sample = dataclasses.replace(sample, task=self.tasks[0])
            if (not self.tasks or sample.task in self.tasks) and (not self.lengths or sample.length in self.lengths):
                yield sample


def find_sources(
    request: Request, lengths: tuple[int, ...], backend: Backend, tokenizer: Path, folder: Path
) -> tuple[list[Source], list[Skip]]:
    """Make what is to be made, and say what cannot be. Every process calls it.

    Args:
        request: what is asked.
        lengths: asked for, already without those that the model cannot read.
        backend: whose writer makes.
        tokenizer: the model's, which counts.
        folder: of the run.

    Raises:
        UserError: a task cannot be made, or a file cannot be read; on every process.
    """
    tasks = request.tasks()
    if request.samples_file:
        names = tuple(task.name for task in tasks)
        chosen = lengths if request.lengths else ()
        sources = [Source(path, names, chosen) for path in request.samples_file]
        for source in sources:
            if backend.is_writer and next(source.samples(), None) is None:
                logger.warning("%s: none of its samples is of the tasks and lengths asked for.", source.path)
        return sources, []
    made_files, skipped = [], []
    for task in tasks:
        made, reasons = on_writer(
            backend, functools.partial(_make, request, task, lengths, tokenizer, folder / PROMPTS)
        )
        made_files += [Source(sample_path(folder / PROMPTS, task.name, length)) for length in made]
        skipped += [Skip(task.name, length, None, reason) for length, reason in reasons]
    return made_files, skipped


def on_writer(backend: Backend, work: Callable[[], T]) -> T:
    """What the writer's call of `work` gives, on every process; a `UserError` of it is raised on every one."""
    found: tuple[T | None, str | None] = (None, None)
    if backend.is_writer:
        try:
            found = (work(), None)
        except UserError as error:
            found = (None, str(error))
    value, complaint = backend.share(found)
    if complaint is not None:
        raise UserError(complaint)
    return value  # type: ignore[return-value]


def _make(
    request: Request, task: Task, lengths: tuple[int, ...], tokenizer: Path, folder: Path
) -> tuple[list[int], list[tuple[int, str]]]:
    """Write what is missing of a task; lengths that are there, and those too short, with the reason."""
    sheets: list[Sheet] = sheets_of([task], lengths, request.grid)
    with disk_errors_named(folder):
        _, skipped = make_sheets(sheets, request.recipe(tokenizer), folder, request.processes())
    reasons = {sheet.length: why for sheet, why in skipped}
    return [sheet.length for sheet in sheets if sheet.length not in reasons], sorted(reasons.items())
