"""One JSON of results a run: its figures, what was done for them, and with what; results/SCALE_ARM_SEED.json.

Scores are 0 to 100. Losses are nats a token of held-out text, so their differences are ratios of perplexity.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from _arms import Experiment, Run
from _stages import Stage

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.run_folder import read_run
from megatron_ultralong.files import read_json, write_json
from megatron_ultralong.provenance import git_commit, versions

FORMAT = 1
Rows = list[dict[str, Any]]
Result = TypeVar("Result", bound=Mapping[str, Any])

MEASURES = {
    "needles": "needles found, mean over the grid to the target",
    "needles_worst_length": "the grid's worst length",
    "long": "needles beyond half the target; with RULER's three tasks at the target, where asked, the mean of both",
    "ruler": "RULER's multi-key, multi-value and variable tracking, mean over tasks and lengths to the target",
    "ruler_past": "the same at twice the target",
    "short": "one key within the base's context",
    "short_ruler": "the three tasks' questions and wording within the base's context",
    "loss_short": "nats a token at positions within the base's context",
    "loss_long": "nats a token from half the target to the target",
    "loss_past": "nats a token from the target to twice the target",
}


def lower_is_better(measure: str) -> bool:
    """Of losses."""
    return measure.startswith("loss_")


def figures(answers: dict[str, Any], perplexity: dict[str, Any], target: int, context: int) -> dict[str, float]:
    """The measures above, from results.json of both evaluation runs; what was not asked is left out.

    Args:
        answers: of needles, recall and RULER.
        perplexity: of `perplexity/by_position`.
        target: tokens of context that the scale reaches for.
        context: the base's.
    """
    rows, losses = answers["scores"], perplexity["perplexity"]

    def mean(fits: Callable[[dict[str, Any]], bool]) -> float | None:
        found = [row["score"] for row in rows if fits(row)]
        return sum(found) / len(found) if found else None

    def nats(length: int, start: int, end: int) -> float | None:
        found = [row for row in losses if row["length"] == length and start <= row["from"] and row["to"] <= end]
        tokens = sum(row["tokens"] for row in found)
        return sum(math.log(row["perplexity"]) * row["tokens"] for row in found) / tokens if tokens else None

    grid = [row["score"] for row in rows if row["task"] == "needles"]
    found = {
        "needles": mean(lambda row: row["task"] == "needles"),
        "needles_worst_length": min(grid) if grid else None,
        "ruler": mean(lambda row: row["task"].startswith("ruler/") and context < row["length"] <= target),
        "ruler_past": mean(lambda row: row["task"].startswith("ruler/") and row["length"] > target),
        "short": mean(lambda row: row["task"] == "recall"),
        "short_ruler": mean(lambda row: row["task"].startswith("ruler/") and row["length"] == context),
        "loss_short": nats(target, 0, context),
        "loss_long": nats(target, target // 2, target),
        "loss_past": nats(2 * target, target, 2 * target),
    }
    far = mean(lambda row: row["task"] == "needles" and 2 * row["length"] > target)
    ruler = mean(lambda row: row["task"].startswith("ruler/") and row["length"] == target)
    found["long"] = far if far is None or ruler is None else (far + ruler) / 2
    return {name: round(value, 5) for name in MEASURES if (value := found[name]) is not None}


def write_result(
    path: Path, experiment: Experiment, run: Run, work: Path, listed: Sequence[Stage], records: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Gather a finished run's figures from the folders of its stages, write them, and return its measures."""
    from megatron_ultralong.engine.cpu_products import has_bf16  # two seconds of PyTorch, for what ends a run alone

    folders = {stage.name: work / stage.folder / "run" for stage in listed}
    answers, perplexity = read_run(folders["answers"]), read_run(folders["perplexity"])
    scale = experiment.scales[run.scale]
    measures = figures(answers.results, perplexity.results, scale.target, experiment.context)
    write_json(path, {
        "format": FORMAT,
        "arm": run.arm,
        "scale": run.scale,
        "seed": run.seed,
        "target": scale.target,
        "base": scale.base,
        "apart": experiment.arms[run.arm].apart,
        "measures": measures,
        "scores": {
            f"{row['task']} {row['length']}": [row["score"], row["samples"]] for row in answers.results["scores"]
        },
        "needles": _grid(answers.results["cells"]),
        "perplexity": {
            f"{row['length']} {row['from']}-{row['to']}": row["perplexity"] for row in perplexity.results["perplexity"]
        },
        "skipped": answers.results["skipped"] + perplexity.results["skipped"],
        "stages": {
            stage.folder: {name: record[name] for name in ("command", "seconds", "cpu_seconds", "attempts")}
            for stage, record in zip(listed, records, strict=True)
        },
        "versions": versions(),
        "bf16_instructions": has_bf16(),
        "git_commit": git_commit(),
    })  # fmt: skip
    return measures


def _grid(cells: Rows) -> dict[str, str]:
    """Length -> scores of the grid's depths, from 0 to 100 %."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in cells:
        if row["task"] == "needles":
            found.setdefault(str(row["length"]), []).append((row["depth"], row["score"]))
    return {length: " ".join(f"{score:g}" for _, score in sorted(theirs)) for length, theirs in found.items()}


def mean_grid(grids: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Rows {length, depth, score, samples} of the mean of results' "needles", depths evenly spread; samples: seeds."""
    rows = []
    for length in sorted(grids[0], key=int):
        columns = [[float(score) for score in grid[length].split()] for grid in grids if length in grid]
        for place, scores in enumerate(zip(*columns, strict=True)):
            depth = place / max(1, len(columns[0]) - 1)
            rows.append(
                {"length": int(length), "depth": depth, "score": statistics.fmean(scores), "samples": len(scores)}
            )
    return rows


def of_arm(results: Sequence[Result], scale: str, arm: str) -> list[Result]:
    """The results of one arm at one scale, in their order."""
    return [result for result in results if (result["scale"], result["arm"]) == (scale, arm)]


def read_results(folder: Path) -> Rows:
    """Every result that is there, by name.

    Raises:
        UserError: a file is no result.
    """
    return [read_result(path) for path in sorted(folder.glob("*.json"))]


def read_result(path: Path) -> dict[str, Any]:
    """A run's file.

    Raises:
        UserError: it is no result.
    """
    mend = "delete it, and run.py run makes it again"
    found: dict[str, Any] = read_json(path, "a run's result", mend)
    if found.get("format") != FORMAT or not {"arm", "scale", "seed", "measures", "stages"} <= found.keys():
        raise UserError(f"{path}: not a run's result of format {FORMAT}; {mend}.")
    return found
