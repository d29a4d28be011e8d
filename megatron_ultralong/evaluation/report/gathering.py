"""Runs' answers by task and length, light enough to hold all at once; a sample's texts are read again where shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.run_folder import Run

Key = tuple[int, str]
"""A sample within its task and length: index and prompt hash. Runs that share it asked the same."""
Cell = tuple[str, int]
"""Task and length."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """What statistics need of an answer: the score from 0 to 1, the needle's depth, what was unusual."""

    score: float
    depth: float | None
    empty: bool
    unfinished: bool
    over_budget: bool
    repeats: float | None


@dataclasses.dataclass(frozen=True)
class Model:
    """A model, with all the runs that asked it.

    Attributes:
        name: in the report; no two are alike.
        runs: where it was read from.
        cells: task and length -> sample -> how it went.
        rows: task and length -> the run's own row of results.json.
    """

    name: str
    runs: list[Run]
    cells: dict[Cell, dict[Key, Scored]]
    rows: dict[Cell, dict[str, Any]]

    @property
    def context_length(self) -> int | None:
        """Tokens, as config.json or the server said."""
        found = self.runs[0].header["context_length"]
        return None if found is None else int(found)

    def results(self, field: str) -> list[dict[str, Any]]:
        """Rows of the runs' results.json."""
        return [row for run in self.runs for row in run.results.get(field) or ()]


def gather(runs: Sequence[tuple[str | None, Run]]) -> list[Model]:
    """Read the answers of runs; those of one name and model are shown as one.

    Args:
        runs: each with the name to call it by, or None for the run's own.

    Raises:
        UserError: two have one name and not one model, or there is nothing to show in one.
    """
    models: dict[str, Model] = {}
    for given, run in runs:
        name = given or run.name
        model = models.setdefault(name, Model(name, [], {}, {}))
        _check(model, run)
        model.runs.append(run)
        for a in run.answers():
            empty = a.answer is not None and not a.answer.strip()
            scored = Scored(a.score, a.depth, empty, not a.finished, a.over_budget, a.haystack_repeats)
            model.cells.setdefault((a.task, a.length), {})[a.index, a.prompt_hash] = scored
        model.rows.update({(row["task"], row["length"]): row for row in run.results["scores"]})
    for model in models.values():
        if not (model.cells or any(model.results(field) for field in ("perplexity", "short", "skipped"))):
            raise UserError(
                f"{model.runs[0].folder}: there is no answer in it yet; run the evaluation, or leave it out."
            )
    return list(models.values())


def _check(model: Model, run: Run) -> None:
    """A name stands for one model, and a folder is named once."""
    for other in model.runs:
        if other.folder.resolve() == run.folder.resolve():
            raise UserError(f"{run.folder}: it is named twice; leave one out.")
        one, two = other.header["model"], run.header["model"]
        if one != two:
            raise UserError(
                f"{other.folder} and {run.folder} are both called {model.name!r} and are of {one} and {two}; name one "
                f"of them otherwise: NAME={run.folder}."
            )


def ordered_tasks(models: Iterable[Model]) -> list[str]:
    """All tasks that were answered, in the order that the runs asked them."""
    return list(dict.fromkeys(task for model in models for task, _ in [*model.rows, *model.cells]))


def family_of(task: str) -> str:
    """The benchmark that a task belongs to."""
    return task.partition("/")[0]
