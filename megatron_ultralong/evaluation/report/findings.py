"""What a reader must know before the numbers: over-long answers, holes, what was skipped, what cannot be paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ultralong.evaluation.report.gathering import Model
from megatron_ultralong.evaluation.report.scale import length_label

_MOST_NAMED = 4
_MANY = 0.2
_ALIKE = "; others likewise"


def skipped(models: Sequence[Model]) -> list[dict[str, Any]]:
    """Rows {model, task, length, samples, reason}, one a model, task and length; `samples` None: all."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for model in models:
        for row in model.results("skipped"):
            kept = found.setdefault((model.name, row["task"], row["length"]), {"model": model.name, **row})
            if kept["reason"] != row["reason"]:
                whole = kept["samples"] is None or row["samples"] is None
                kept["samples"] = None if whole else kept["samples"] + row["samples"]
                kept["reason"] = kept["reason"].removesuffix(_ALIKE) + _ALIKE
    return list(found.values())


def findings(models: Sequence[Model], families: Mapping[str, Any]) -> list[str]:
    """Sentences, the gravest first; none when all is as it should be."""
    found = [f"{model.name}: the run is not finished; what is shown is what there was." for model in models
             if not all(run.results["complete"] for run in model.runs)]  # fmt: skip
    found += _unpaired(models)
    for field, words in (
        (
            "over_budget",
            "answers are longer than the budget, which the task does not allow; they count as they are",
        ),
        ("unfinished", "answers were cut at the budget"),
        ("empty", "answers are empty"),
    ):
        found += _counted(models, families, field, words)
    found += _repeated(families)
    if rows := skipped(models):
        found.append(f"Skipped, in part or whole: {len(rows)} tasks and lengths, listed with their reasons; no zeros.")
    return found


def _unpaired(models: Sequence[Model]) -> list[str]:
    reference, found = models[0], []
    for model in models[1:]:
        cells = [cell for cell in model.cells if cell in reference.cells]
        apart = [cell for cell in cells if not model.cells[cell].keys() & reference.cells[cell].keys()]
        partly = [
            cell for cell in cells if cell not in apart and model.cells[cell].keys() != reference.cells[cell].keys()
        ]
        if apart:
            found.append(
                f"{model.name} and {reference.name} were not asked the same prompts in {len(apart)} of {len(cells)} "
                "tasks and lengths: there is no paired difference there."
            )
        if partly:
            found.append(
                f"{model.name} and {reference.name} answered different samples in {len(partly)} of {len(cells)} "
                "tasks and lengths: differences are over those that both did."
            )
    return found


def _counted(models: Sequence[Model], families: Mapping[str, Any], field: str, words: str) -> list[str]:
    """A sentence a model, naming the tasks and lengths that are most concerned."""
    found = []
    for model in models:
        places = []
        for family in families.values():
            for task, cells in family["models"][model.name]["tasks"].items():
                places += [(cell[field], cell["samples"], task, int(length)) for length, cell in cells.items()]
        count, samples = sum(place[0] for place in places), sum(place[1] for place in places)
        notable = field == "over_budget" or count > _MANY * samples
        if count and notable:
            worst = sorted(places, key=lambda place: -place[0] / place[1])[:_MOST_NAMED]
            named = ", ".join(
                f"{task} at {length_label(length)} ({number} of {of})" for number, of, task, length in worst if number
            )
            found.append(f"{model.name}: {count:,} of {samples:,} {words}; most in {named}.")
    return found


def _repeated(families: Mapping[str, Any]) -> list[str]:
    """Haystacks that were too short for their prompts."""
    repeats: dict[tuple[str, int], float] = {}
    for family in families.values():
        for model in family["models"].values():
            for task, cells in model["tasks"].items():
                repeats |= {(task, int(length)): cell["haystack_repeats"] or 1.0 for length, cell in cells.items()}
    most = max(repeats, key=lambda cell: repeats[cell], default=None)
    if most is None or repeats[most] <= 1:
        return []
    over = sum(times > 1 for times in repeats.values())
    return [
        f"In {over} tasks and lengths the haystack is shorter than the prompt and repeats, up to {repeats[most]:.1f} "
        f"times over in {most[0]} at {length_label(most[1])} tokens."
    ]
