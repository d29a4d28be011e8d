"""Short-context tasks through lm-evaluation-harness (`pip install lm_eval`), into a run folder like the others."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import io
import logging
import os
from pathlib import Path
from typing import Any

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.interface import Backend
from megatron_ultralong.evaluation.run_folder import FORMAT, RESULTS, RUN
from megatron_ultralong.evaluation.running.request import check_same, tokenizer_identity
from megatron_ultralong.evaluation.running.sample_files import on_writer
from megatron_ultralong.evaluation.short.short_recipes import RECIPES, Name, ShortTask
from megatron_ultralong.files import disk_errors_named, read_json, write_json
from megatron_ultralong.provenance import git_commit, versions

logger = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"
WHOLE = "lm_eval.json"

_KEPT = ("results", "versions", "n-shot", "n-samples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortRequest:
    """What is asked."""

    recipe: Name = "paper"
    """paper: MMLU, MMLU-Pro, MATH, GSM8K and HumanEval with the UltraLong paper's shots."""
    task: tuple[str, ...] = ()
    """Of the recipe's, these alone, by lm-evaluation-harness's names; or other tasks of it, with their own shots."""
    include: Path | None = None
    """Folder with task files (YAML) of your own."""
    limit: int | None = None
    """Questions a task at most, to try things out."""
    chat: bool = False
    """Ask in the model's chat template, the shots as turns of the chat."""
    run_generated_code: bool = False
    """Let HumanEval execute on this machine what the model writes. Only inside a container or virtual machine."""

    def tasks(self) -> list[ShortTask]:
        """In order; those that execute code only where that is allowed."""
        known = RECIPES[self.recipe]
        chosen = [
            next((each for each in known if name in (each.task, each.chat_task)), ShortTask(name, name, "", -1))
            for name in self.task
        ] or list(known)
        return [each for each in chosen if self.run_generated_code or not each.runs_code]

    def left_out(self) -> list[ShortTask]:
        """Those that execute code and may not."""
        named = [each for each in RECIPES[self.recipe] if not self.task or each.task in self.task]
        return [each for each in named if each.runs_code and not self.run_generated_code]

    def name_of(self, task: ShortTask) -> str:
        """lm-evaluation-harness's name, as asked."""
        return (task.chat_task or task.task) if self.chat else task.task


def run_short(
    request: ShortRequest, backend: Backend, tokenizer: ChatTokenizer, folder: Path, name: str, model: str
) -> dict[str, Any]:
    """Ask all tasks; every process calls it.

    Returns:
        What results.json holds.

    Raises:
        UserError: lm_eval is not installed, a task is not known, or its data cannot be had.
    """
    modules = _import()
    on_writer(backend, lambda: _open(request, backend, tokenizer, folder, name, model))
    answering = modules["model"](backend, tokenizer, folder / ANSWERS)
    manager = _manager(request.include)
    rows, whole = [], {}
    try:
        for task in request.tasks():
            found = _evaluate(modules["evaluate"], request, task, answering, manager)
            whole[task.task] = {
                key: found[key] for key in ("results", "versions", "n-shot", "n-samples") if key in found
            }
            rows.append(_row(request, task, found, answering.truncated))
            answering.truncated = 0
    finally:
        answering.close()
    skipped = [
        {"task": f"short/{each.task}", "length": 0, "samples": None, "reason": "it executes code: --run-generated-code"}
        for each in request.left_out()
    ]
    results = {"format": FORMAT, "complete": True, "scores": [], "cells": [], "perplexity": [], "short": rows}
    results |= {"skipped": skipped, "seconds": None}
    if backend.is_writer:
        with disk_errors_named(folder):
            write_json(folder / WHOLE, whole)
            write_json(folder / RESULTS, results)
    return results


def _import() -> dict[str, Any]:
    """What is used of lm_eval.

    Raises:
        UserError: it is not there.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise UserError(f"short tasks need lm-evaluation-harness ({error}); pip install lm_eval[math].") from None
    from megatron_ultralong.evaluation.short.harness_model import harness_class

    return {"evaluate": lm_eval.simple_evaluate, "model": harness_class()}


@functools.cache
def _manager(include: Path | None) -> Any:
    """What knows the task files, which takes seconds: there are ten thousand."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include is None else str(include))


def _open(
    request: ShortRequest, backend: Backend, tokenizer: ChatTokenizer, folder: Path, name: str, model: str
) -> None:
    """Begin run.json, or check that it is this run's."""
    settings = {
        "recipe": request.recipe,
        "tasks": [f"short/{request.name_of(task)}" for task in request.tasks()],
        "limit": request.limit,
        "form": "chat" if request.chat else "base",
    }
    header = {
        "format": FORMAT,
        "name": name,
        "model": model,
        "context_length": backend.context_length,
        "backend": backend.describe(),
        "tokenizer": tokenizer_identity(tokenizer),
        "settings": settings,
        "versions": {**versions(), "lm_eval": importlib.metadata.version("lm_eval")},
        "git_commit": git_commit(),
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    with disk_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RUN
        if path.exists():
            check_same(folder, read_json(path, "the run's settings", "name another folder"), header)
        elif others := sorted(each.name for each in folder.iterdir()):
            raise UserError(f"--output: {folder} holds {others[0]} and no run; name another folder.")
        else:
            write_json(path, header)


def _evaluate(evaluate: Any, request: ShortRequest, task: ShortTask, model: Any, manager: Any) -> dict[str, Any]:
    name = request.name_of(task)
    if task.runs_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # what the metric asks for, beside our own question
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its tables
            found: dict[str, Any] | None = evaluate(
                model=model,
                tasks=[name],
                num_fewshot=task.shots if task.shots >= 0 else None,
                limit=request.limit,
                bootstrap_iters=0,
                log_samples=False,
                apply_chat_template=request.chat,
                fewshot_as_multiturn=request.chat,
                task_manager=manager,
                confirm_run_unsafe_code=request.run_generated_code,
            )
    except UserError:
        raise
    except Exception as error:  # data sets that cannot be had, broken task files: it raises whatever comes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"--task {name}: lm-evaluation-harness cannot ask it ({reason}); see its files and data."
        ) from None
    assert found is not None, "there is one rank"
    return found


def _row(request: ShortRequest, task: ShortTask, found: dict[str, Any], truncated: int) -> dict[str, Any]:
    """A row of results.json's `short`."""
    name = request.name_of(task)
    scores = {key: value for key, value in found["results"][name].items() if "," in key and isinstance(value, float)}
    metric = task.metric if task.metric in scores else next((key for key in scores if "stderr" not in key), "")
    if not metric or (task.metric and task.metric not in scores):
        raise UserError(
            f"--task {name}: lm-evaluation-harness gives {sorted(scores)} and not {task.metric!r}; update it."
        )
    counts = found.get("n-samples", {})
    return {
        "task": f"short/{name}",
        "label": task.label,
        "metric": metric,
        "shots": task.shots if task.shots >= 0 else found.get("n-shot", {}).get(name),
        "score": round(100 * scores[metric], 2) if _is_share(metric) else round(scores[metric], 4),
        "samples": sum(row["effective"] for row in counts.values()),
        "truncated": truncated,
    }


def _is_share(metric: str) -> bool:
    """Whether it runs from 0 to 1; perplexities and the like do not."""
    return not any(word in metric for word in ("perplexity", "bits", "loss"))
