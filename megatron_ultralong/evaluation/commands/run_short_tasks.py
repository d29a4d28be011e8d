"""`tools/evaluate.py short`: short-context benchmarks through lm-evaluation-harness."""

from __future__ import annotations

import logging
from pathlib import Path

from megatron_ultralong.evaluation.backends.model_options import ModelOptions
from megatron_ultralong.evaluation.commands.answering import answering_backend, label_of
from megatron_ultralong.evaluation.run_folder import RESULTS
from megatron_ultralong.evaluation.short.harness_run import ShortRequest, run_short

logger = logging.getLogger(__name__)


def short(request: ShortRequest, answering: ModelOptions, *, output: Path, name: str = "") -> None:
    """Ask short-context benchmarks through lm-evaluation-harness and write a run folder.

    It needs lm_eval[math] (pip) and the tasks' data sets, which it loads from the Hugging Face hub or its cache.
    A run that was stopped goes on where it was when the same command is given again.

    Args:
        request: what is asked.
        answering: the model, and what answers for it.
        output: the run's folder.
        name: how reports call the model; empty: the last part of --model.
    """
    label = label_of(name, answering)
    with answering_backend(answering, "chat" if request.chat else "base", output) as (backend, tokenizer):
        results = run_short(request, backend, tokenizer, output, label, answering.model)
    if not backend.is_writer:
        return
    for row in results["short"]:
        how = f"{row['metric']}, {row['shots']} shots, {row['samples']} questions"
        said = f"{label}: {row['label']}: {row['score']} ({how})"
        logger.info("%s", said + (f", {row['truncated']} lost their beginning" if row["truncated"] else ""))
    for row in results["skipped"]:
        logger.info("%s: %s skipped: %s", label, row["task"], row["reason"])
    logger.info("wrote %s", output / RESULTS)
