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
    """One run.

    Attributes:
        name: in the report; no two are alike.
        run: where it was read from.
        cells: task and length -> sample -> how it went.
        rows: task and length -> the run's own row of results.json.
    """

    name: str
    run: Run
    cells: dict[Cell, dict[Key, Scored]]
    rows: dict[Cell, dict[str, Any]]

    @property
    def context_length(self) -> int | None:
        """Tokens, as config.json or the server said."""
        found = self.run.header["context_length"]
        return None if found is None else int(found)


def gather(runs: Sequence[tuple[str | None, Run]]) -> list[Model]:
    """Read the answers of runs.

    Args:
        runs: each with the name to call it by, or None for the run's own.

    Raises:
        UserError: two have one name, or there is nothing to show in any.
    """
    models: list[Model] = []
    for name, run in runs:
        cells: dict[Cell, dict[Key, Scored]] = {}
        for a in run.answers():
            scored = Scored(a.score, a.depth, a.answer is not None and not a.answer.strip(),
                            not a.finished, a.over_budget, a.haystack_repeats)  # fmt: skip
            cells.setdefault((a.task, a.length), {})[a.index, a.prompt_hash] = scored
        rows = {(row["task"], row["length"]): row for row in run.results["scores"]}
        models.append(Model(name or run.name, run, cells, rows))
    _check(models)
    return models


def _check(models: Sequence[Model]) -> None:
    seen: dict[str, Model] = {}
    for model in models:
        if other := seen.get(model.name):
            raise UserError(
                f"{other.run.folder} and {model.run.folder} are both called {model.name!r}; "
                f"name one of them otherwise: NAME={model.run.folder}."
            )
        seen[model.name] = model
        results = model.run.results
        if not (model.cells or results["perplexity"] or results["skipped"]):
            raise UserError(f"{model.run.folder}: there is no answer in it yet; run the evaluation, or leave it out.")


def ordered_tasks(models: Iterable[Model]) -> list[str]:
    """All tasks that were answered, in the order that the runs asked them."""
    return list(dict.fromkeys(task for model in models for task, _ in [*model.rows, *model.cells]))


def family_of(task: str) -> str:
    """The benchmark that a task belongs to."""
    return task.partition("/")[0]
