"""Evaluate models: passkey heatmap, short task, perplexity by position, one report.

    python tools/evaluate.py --base DIR --extended DIR --haystack text.jsonl --documents held_out.jsonl --output DIR

Models are folders in Hugging Face format. The output folder gets results.json, report.html and heatmap.png.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_ultralong.cli import run_commands
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation import inputs
from megatron_ultralong.evaluation.commands.compare_runs import compare_runs
from megatron_ultralong.evaluation.commands.make_samples import make
from megatron_ultralong.evaluation.commands.run_short_tasks import short
from megatron_ultralong.evaluation.commands.run_tasks import run
from megatron_ultralong.evaluation.commands.score_predictions import score
from megatron_ultralong.evaluation.evaluate import Settings, evaluate
from megatron_ultralong.evaluation.report.pair_page import write_report
from megatron_ultralong.files import disk_errors_named, writable, write_json

logger = logging.getLogger(__name__)


def main(
    settings: Settings,
    *,
    haystack: Path,
    documents: Path,
    output: Path,
    base: Path | None = None,
    extended: Path | None = None,
    model: tuple[str, ...] = (),
    extra: Path | None = None,
    metrics: tuple[str, ...] = (),
) -> None:
    """Evaluate two or more models on the same prompts and write results.json, report.html and heatmap.png.

    Args:
        settings: what is asked of every model.
        haystack: real text that needles are hidden in: a file, folder or glob of any format that is tokenized.
        documents: the same of held-out documents of at least the target length, for perplexity.
        output: folder for the results.
        base: the reference model's folder; it is also asked past its own context.
        extended: the extended model's folder.
        model: instead of base and extended: NAME=DIR of each model, the reference first.
        extra: JSON file whose keys are merged into results.json and shown in the report.
        metrics: NAME=metrics.jsonl of training stages whose curves the report shows.
    """
    if not writable(output):
        raise UserError(f"--output is {output}, where nothing can be written; name another folder.")
    folders = inputs.model_folders(base, extended, model)
    extras: dict[str, Any] = inputs.read_extra(extra, folders) if extra else {}
    curves = inputs.read_curves(metrics)
    results = evaluate(folders, inputs.read_texts(haystack), inputs.read_texts(documents), settings)
    results = inputs.merge(results, extras)
    with disk_errors_named(output):
        write_json(output / "results.json", results)
        write_report(results, output, curves)
    say_scores(results, folders, output)


def say_scores(results: dict[str, Any], models: Iterable[str], output: Path) -> None:
    """A line a model, and what was written."""
    for name in models:
        logger.info(
            "%s: passkey at %s tokens %.1f %%, short task %.1f %%",
            name,
            f"{results['target_length']:,}",
            100 * results[name]["passkey_at_target"],
            100 * results[name]["short_task"],
        )
    logger.info("wrote %s", ", ".join(str(output / name) for name in ("results.json", "report.html", "heatmap.png")))


COMMANDS = {
    "make": make,
    "run": run,
    "short": short,
    "pair": main,
    "score": score,
    "compare": compare_runs,
}

if __name__ == "__main__":
    run_commands(COMMANDS)
