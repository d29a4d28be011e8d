"""Runs every task on every model and gathers one nested result, ready for JSON and the report.

The order of models matters: the first is the reference ("base"), the last the one that was made from it
("extended"). Prompts and windows are drawn once, with the first model's tokenizer, and every model gets the
same ids; models are loaded one after the other, so that one at a time is in memory.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.backends.hf import Dtype, LanguageModel, ModelInfo, read_info
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.perplexity import bucket_edges, cut_windows, perplexity_rows
from megatron_ultralong.evaluation.benchmarks.scoring import Prompt
from megatron_ultralong.evaluation.benchmarks.tasks import (
    Cell,
    depth_grid,
    passkey_cells,
    passkey_rows,
    recall_prompts,
    recall_score,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked of every model."""

    lengths: tuple[int, ...] = ()
    """Lengths of the heatmap in tokens; empty: the base's context length, doubled up to the extended model's."""
    depths: int = 11
    """Depths of the heatmap, evenly spread from 0 to 100 %."""
    samples_per_cell: int = 4
    """Prompts for each length and depth."""
    recall_samples: int = 200
    """Conversations of the short task."""
    recall_length: int = 0
    """Tokens of each of them, at most the base's context length; 0: as many."""
    recall_facts: int = 3
    """Facts in each of them at random depths, and questions about them."""
    perplexity_windows: int = 32
    """Windows of held-out text, each of the target length."""
    seed: int = 0
    """Seed of all prompts."""
    dtype: Dtype = "fp32"
    """Precision of weights and activations."""

    def check(self) -> None:
        """Refuse counts that ask nothing.

        Raises:
            UserError: one of the counts is below 1.
        """
        for name in ("depths", "samples_per_cell", "recall_samples", "recall_facts", "perplexity_windows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)} is too small; give at least 1.")


@dataclasses.dataclass(frozen=True)
class _Tasks:
    """The same for every model."""

    target_length: int
    recall_length: int
    cells: list[Cell]
    recall: list[Prompt]
    windows: torch.Tensor
    edges: list[int]


def evaluate(
    folders: Mapping[str, Path], haystack_texts: Sequence[str], documents: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """Run all tasks on all models.

    Args:
        folders: name -> folder in Hugging Face format; the first is the reference, the last the extended model.
        haystack_texts: real text to hide needles in.
        documents: held-out long documents for perplexity.
        settings: what is asked.

    Returns:
        `{name: {folder, context_length, passkey, passkey_at_target, short_task, seconds}}` for each model, and
        target_length, perplexity (by model: rows {from, to, perplexity, tokens}), rope_scaling (of the extended
        model), seconds and settings. `passkey` holds rows {length, depth, score, samples}; `passkey_at_target`
        is their mean over depths at the target length.

    Raises:
        UserError: a folder, a setting, the haystack or the documents cannot be used.
    """
    settings.check()
    started = time.monotonic()
    infos = {name: read_info(folder) for name, folder in folders.items()}
    tokenizer = ChatTokenizer(next(iter(infos.values())).folder)
    _check_vocabularies(infos, tokenizer)
    tasks = _draw(infos, tokenizer, haystack_texts, documents, settings)
    results: dict[str, Any] = {}
    perplexity: dict[str, Any] = {}
    for name, info in infos.items():
        results[name], perplexity[name] = _evaluate_model(name, info, tasks, settings)
    return results | {
        "target_length": tasks.target_length,
        "perplexity": perplexity,
        "rope_scaling": list(infos.values())[-1].rope_scaling,
        "seconds": {"evaluation": round(time.monotonic() - started, 1)},
        "settings": {
            **dataclasses.asdict(settings),
            "lengths": sorted({cell.length for cell in tasks.cells}),
            "recall_length": tasks.recall_length,
            "perplexity_windows": len(tasks.windows),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "torch": torch.__version__,
        },
    }


def doubled_lengths(first: int, last: int) -> tuple[int, ...]:
    """`first`, doubled while below `last`, and `last`."""
    lengths = [first]
    while 2 * lengths[-1] < last:
        lengths.append(2 * lengths[-1])
    return (*lengths, last) if lengths[-1] < last else tuple(lengths)


def _draw(
    infos: Mapping[str, ModelInfo],
    tokenizer: ChatTokenizer,
    haystack_texts: Sequence[str],
    documents: Sequence[str],
    settings: Settings,
) -> _Tasks:
    first, *_, last = [info.context_length for info in infos.values()] * 2
    lengths = settings.lengths or doubled_lengths(first, last)
    target = last if last in lengths else max(lengths)
    recall_length = _recall_length(settings.recall_length, next(iter(infos)), first)
    haystack = Haystack(haystack_texts, tokenizer)
    return _Tasks(
        target_length=target,
        recall_length=recall_length,
        cells=passkey_cells(
            haystack,
            tokenizer,
            lengths=sorted(set(lengths)),
            depths=depth_grid(settings.depths),
            samples=settings.samples_per_cell,
            seed=settings.seed,
        ),
        recall=recall_prompts(
            haystack,
            tokenizer,
            length=recall_length,
            facts=settings.recall_facts,
            samples=settings.recall_samples,
            seed=settings.seed,
        ),
        windows=cut_windows(documents, tokenizer, target, settings.perplexity_windows),
        edges=bucket_edges(target),
    )


def _recall_length(asked: int, base: str, context: int) -> int:
    """Tokens of the short task's conversations, which the base must be able to read."""
    if not 0 <= asked <= context:
        raise UserError(
            f"recall_length = {asked} is out of range: the short task shows what {base} could do before, within its "
            f"context of {context} tokens; give 1 to {context}, or 0 for all of it."
        )
    return asked or context


def _evaluate_model(
    name: str, info: ModelInfo, tasks: _Tasks, settings: Settings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The model's own results, and its perplexity rows."""
    longest = max(cell.length for cell in tasks.cells)
    if longest > info.context_length:
        logger.info(
            "%s: asked up to %s tokens, past its context of %s (max_position_embeddings): that is the comparison.",
            name,
            f"{longest:,}",
            f"{info.context_length:,}",
        )
    model = LanguageModel(info, settings.dtype)
    seconds = {}
    started = time.monotonic()
    passkey = passkey_rows(model, tasks.cells, f"{name}: passkey")
    seconds["passkey"] = round(time.monotonic() - started, 1)
    started = time.monotonic()
    short_task = recall_score(model, tasks.recall, f"{name}: short task")
    seconds["short_task"] = round(time.monotonic() - started, 1)
    started = time.monotonic()
    perplexity = perplexity_rows(model, tasks.windows, tasks.edges, f"{name}: perplexity")
    seconds["perplexity"] = round(time.monotonic() - started, 1)
    at_target = [row["score"] for row in passkey if row["length"] == tasks.target_length]
    result = {
        "folder": str(info.folder),
        "context_length": info.context_length,
        "passkey": passkey,
        "passkey_at_target": sum(at_target) / len(at_target),
        "short_task": short_task,
        "short_task_questions": sum(len(prompt.answers) for prompt in tasks.recall),
        "seconds": seconds,
    }
    return result, perplexity


def _check_vocabularies(infos: Mapping[str, ModelInfo], tokenizer: ChatTokenizer) -> None:
    """Every model gets the same ids, so its folder's tokenizer must agree and its vocabulary hold them."""
    chat = [{"role": "user", "content": "The sample key is 01234."}, {"role": "assistant", "content": "Yes.\n\nNo."}]
    expected = tokenizer.encode(tokenizer.render(chat))
    for info in infos.values():
        own = ChatTokenizer(info.folder)
        if own.encode(own.render(chat)) != expected or own.vocab_size != tokenizer.vocab_size:
            raise UserError(
                f"{info.folder}: its tokenizer or chat template differs from the first model's; "
                "compare models that share them."
            )
        if own.vocab_size > info.vocab_size:
            raise UserError(
                f"{info.folder}: the tokenizer has {own.vocab_size} ids and config.json's vocab_size is "
                f"{info.vocab_size}; copy the model's own tokenizer files."
            )
