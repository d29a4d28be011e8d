"""`tools/evaluate.py compare`: runs side by side, as one page to look at and one file of numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.report.comparison import FORMAT, compare_scores, needle_grids
from megatron_ultralong.evaluation.report.extras import read_extra
from megatron_ultralong.evaluation.report.findings import findings, skipped
from megatron_ultralong.evaluation.report.gathering import Model, gather
from megatron_ultralong.evaluation.report.heatmap import heatmap_png
from megatron_ultralong.evaluation.report.opened_samples import MOST_A_TASK, open_samples
from megatron_ultralong.evaluation.report.page import report_page
from megatron_ultralong.evaluation.report.perplexities import perplexities
from megatron_ultralong.evaluation.report.scale import length_label
from megatron_ultralong.evaluation.report.score_section import title_of
from megatron_ultralong.evaluation.report.stage_curves import read_curves
from megatron_ultralong.evaluation.report.task_picture import task_png
from megatron_ultralong.evaluation.run_folder import Run, read_run
from megatron_ultralong.files import atomic_file, disk_errors_named, writable, write_json

logger = logging.getLogger(__name__)


def compare_runs(
    runs: tuple[str, ...],
    /,
    *,
    output: Path,
    metrics: tuple[str, ...] = (),
    extra: Path | None = None,
    samples_a_task: int = MOST_A_TASK,
) -> None:
    """Put runs side by side: report.html, compare.json, and PNGs of needles' heatmaps and of benchmarks' tables.

    Args:
        runs: folders that `run` has written, the reference first; NAME=FOLDER calls a run by another name. Runs of one
            name and model are shown as one.
        output: folder for the report.
        metrics: NAME=metrics.jsonl of training stages whose curves the report shows.
        extra: JSON file whose keys the report shows and compare.json keeps.
        samples_a_task: samples of each task that can be opened.
    """
    if not writable(output):
        raise UserError(f"--output is {output}, where nothing can be written; name another folder.")
    if samples_a_task < 0:
        raise UserError(f"--samples-a-task is {samples_a_task}; give 0 or more.")
    if not runs:
        raise UserError("there is no run to show; name at least one folder that tools/evaluate.py run has written.")
    curves = read_curves(metrics)
    further = read_extra(extra) if extra else {}
    models = gather([_named_run(words) for words in runs])
    result = comparison(models, further)
    page = report_page(result, models, open_samples(models, samples_a_task), curves)
    with disk_errors_named(output):
        write_json(output / "compare.json", result)
        for name, content in (("report.html", page.encode()), *_pictures(result, models)):
            with atomic_file(output / name) as temporary:
                temporary.write_bytes(content)
    _say(result, output)


def comparison(models: Sequence[Model], extra: Mapping[str, Any]) -> dict[str, Any]:
    """What compare.json holds; docs/evaluation.md says what each field means."""
    families = compare_scores(models)
    return {
        "format": FORMAT,
        "reference": models[0].name,
        "models": {
            model.name: {
                "runs": [str(run.folder) for run in model.runs],
                "model": model.runs[0].header["model"],
                "context_length": model.context_length,
                "complete": all(run.results["complete"] for run in model.runs),
            }
            for model in models
        },
        "families": families,
        "needles": needle_grids(models),
        "perplexity": perplexities(models),
        "short": {model.name: rows for model in models if (rows := model.results("short"))},
        "skipped": skipped(models),
        "findings": findings(models, families),
        "extra": dict(extra),
    }  # fmt: skip


def _named_run(words: str) -> tuple[str | None, Run]:
    """A run, by its folder or as NAME=FOLDER."""
    if Path(words).is_dir() or "=" not in words:
        return None, read_run(Path(words))
    name, _, folder = words.partition("=")
    if not name or not folder:
        raise UserError(f"{words}: write a run as FOLDER or NAME=FOLDER.")
    return name, read_run(Path(folder))


def _pictures(result: Mapping[str, Any], models: Sequence[Model]) -> list[tuple[str, bytes]]:
    contexts = {model.name: model.context_length for model in models}
    found = []
    for task, grids in result["needles"].items():
        kind = task.partition("/")[2].replace("/", "_")  # of the plain task "needles" nothing
        limit = contexts[next(iter(grids))]
        words = "Share of prompts answered right."
        words += f" Dashed line: context of {next(iter(grids))}, {length_label(limit)} tokens." if limit else ""
        headline = f"Needles: {kind}" if kind else "A needle in a long text: how often is it found?"
        found.append((f"heatmap_{kind}.png" if kind else "heatmap.png", heatmap_png(grids, contexts, headline, words)))
    for name, family in result["families"].items():
        if len(family["tasks"]) > 1 and name != "needles":
            headline = f"{title_of(name)} by task and length"
            found.append((f"{name}.png", task_png(family, list(contexts), headline)))
    return found


def _say(result: Mapping[str, Any], output: Path) -> None:
    """A line a benchmark, and what was written."""
    for family, found in result["families"].items():
        longest = str(found["lengths"][-1])
        scores = ", ".join(
            f"{name} {row['score']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
            for name, model in found["models"].items()
            if (row := model["lengths"].get(longest))
        )
        logger.info("%s at %s tokens: %s", family, f"{int(longest):,}", scores)
    for words in result["findings"]:
        logger.warning("%s", words)
    logger.info("wrote %s", output / "report.html")
