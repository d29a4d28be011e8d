"""Several runs as one nested result: scores by task and length with intervals, differences, averages; compare.json.

Scores are 0 to 100. The first model is the reference: differences of the others to it are taken over the samples that
both answered. Averages give each task, and each length, the same weight. `docs/evaluation.md` says what each number
means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_ultralong.evaluation.report.bootstrap import Estimate, average, estimate
from megatron_ultralong.evaluation.report.gathering import Cell, Model, family_of, ordered_tasks
from megatron_ultralong.evaluation.report.paper_averages import effective_length, paper_averages
from megatron_ultralong.evaluation.report.published import published

FORMAT = 1
Estimates = dict[Cell, Estimate]


def compare_scores(models: Sequence[Model]) -> dict[str, Any]:
    """Family -> {tasks, lengths, models, published}, see docs/evaluation.md."""
    tasks = ordered_tasks(models)
    families = dict.fromkeys(map(family_of, tasks))
    return {family: _family(family, [t for t in tasks if family_of(t) == family], models) for family in families}


def _family(family: str, tasks: Sequence[str], models: Sequence[Model]) -> dict[str, Any]:
    lengths = sorted({length for model in models for task, length in model.cells if task in tasks})
    scores = [_estimates(model, tasks) for model in models]
    differences = [_differences(models[0], model, tasks) for model in models]
    shown = {
        model.name: _of_model(family, model, tasks, own, {} if model is models[0] else differences[index])
        for index, (model, own) in enumerate(zip(models, scores, strict=True))
    }
    return {"tasks": list(tasks), "lengths": lengths, "models": shown, "published": published(family)}


def _estimates(model: Model, tasks: Sequence[str]) -> Estimates:
    return {
        cell: estimate([100 * scored.score for scored in answers.values()], f"{cell}")
        for cell, answers in model.cells.items()
        if cell[0] in tasks
    }


def _differences(reference: Model, model: Model, tasks: Sequence[str]) -> Estimates:
    """Model minus reference over the samples of each cell that both answered."""
    found = {}
    for cell, answers in model.cells.items():
        others = reference.cells.get(cell, {})
        common = [key for key in answers if key in others]
        if cell[0] in tasks and common:
            found[cell] = estimate([100 * (answers[key].score - others[key].score) for key in common], f"{cell} -")
    return found


def _of_model(
    family: str, model: Model, tasks: Sequence[str], own: Estimates, differences: Estimates
) -> dict[str, Any]:
    lengths = sorted({length for _, length in own})
    by_length = {
        length: _shown([own[t, length] for t in tasks if (t, length) in own],
                       [differences[t, length] for t in tasks if (t, length) in differences])
        | {"tasks": sum((t, length) in own for t in tasks)}
        for length in lengths
    }  # fmt: skip
    return {
        "tasks": {
            task: {str(length): _cell(model, (task, length), own, differences)
                   for length in lengths if (task, length) in own}
            for task in tasks
        },
        "lengths": {str(length): row for length, row in by_length.items()},
        "averages": paper_averages(family, own, differences),
        "effective_length": effective_length(by_length) if family == "ruler" else None,
    }  # fmt: skip


def _cell(model: Model, cell: Cell, own: Estimates, differences: Estimates) -> dict[str, Any]:
    answers, row = model.cells[cell].values(), model.rows.get(cell, {})
    return _shown([own[cell]], [differences[cell]] if cell in differences else []) | {
        "chance": round(100 * row["chance"], 2) if row.get("chance") is not None else None,
        "how": row.get("how"),
        "budget": row.get("budget"),
        "empty": sum(answer.empty for answer in answers),
        "unfinished": sum(answer.unfinished for answer in answers),
        "over_budget": sum(answer.over_budget for answer in answers),
        "haystack_repeats": max((a.repeats for a in answers if a.repeats is not None), default=None),
    }


def _shown(own: Sequence[Estimate], differences: Sequence[Estimate]) -> dict[str, Any]:
    """A mean over cells; its difference only where each of them has one."""
    row = _rounded(average(own))
    return row | {"difference": _rounded(average(differences)) if len(differences) == len(own) else None}


def _rounded(found: Estimate) -> dict[str, Any]:
    low, high = found.interval
    return {"score": round(found.mean, 2), "low": round(low, 2), "high": round(high, 2), "samples": found.samples}


def needle_grids(models: Sequence[Model]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Task -> model -> rows {length, depth, score, samples}, of each task whose samples lie at a few depths."""
    grids: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for model in models:
        for (task, length), answers in sorted(model.cells.items(), key=lambda item: item[0][1]):
            if family_of(task) != "needles":
                continue
            by_depth: dict[float, list[float]] = {}
            for scored in answers.values():
                if scored.depth is not None:
                    by_depth.setdefault(scored.depth, []).append(100 * scored.score)
            rows = [
                {"length": length, "depth": depth, "score": round(sum(all_) / len(all_), 2), "samples": len(all_)}
                for depth, all_ in sorted(by_depth.items())
            ]
            grids.setdefault(task, {}).setdefault(model.name, []).extend(rows)
    return grids
