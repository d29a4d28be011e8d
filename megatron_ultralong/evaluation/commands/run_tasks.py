"""`tools/evaluate.py run`: tasks on a model through a backend into a run folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.backends.model_options import ModelOptions
from megatron_ultralong.evaluation.commands.answering import answering_backend, label_of
from megatron_ultralong.evaluation.run_folder import RESULTS, SAMPLES
from megatron_ultralong.evaluation.running.request import Request
from megatron_ultralong.evaluation.running.whole_run import WholeRun

logger = logging.getLogger(__name__)


def run(request: Request, answering: ModelOptions, *, output: Path, name: str = "") -> None:
    """Ask a model the samples of one or several tasks and write a run folder, which docs/evaluation_runs.md explains.

    A run that was stopped goes on where it was when the same command is given again.

    Args:
        request: what is asked.
        answering: the model, and what answers for it.
        output: the run's folder.
        name: how reports call the model; empty: the last part of --model.
    """
    request.check()
    label = label_of(name, answering)
    with answering_backend(answering, request.form, output) as (backend, tokenizer):
        whole = WholeRun(request, backend, tokenizer, output, label, answering.model, answering.past_context)
        results = whole.run()
        if backend.is_writer:
            say(label, results, output)


def say(name: str, results: dict[str, Any], output: Path) -> None:
    """A line a task and length, what was skipped, and where all is."""
    for row in results["scores"]:
        said = f"{name}: {row['task']} at {row['length']:,} tokens: {row['score']:.2f} ({row['samples']} samples)"
        logger.info("%s", said + (f", {row['over_budget']} over the budget" if row["over_budget"] else ""))
    for row in results["perplexity"]:
        place = f"positions {row['from']:,} to {row['to']:,}"
        logger.info("%s: %s at %s tokens, %s: %.3f", name, row["task"], f"{row['length']:,}", place, row["perplexity"])
    for row in results["skipped"]:
        many = "all" if row["samples"] is None else row["samples"]
        logger.info("%s: %s at %s tokens: skipped %s: %s", name, row["task"], f"{row['length']:,}", many, row["reason"])
    logger.info("wrote %s and %s", output / RESULTS, output / SAMPLES)
