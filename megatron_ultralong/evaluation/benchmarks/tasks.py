"""The two retrieval tasks as data: prompts drawn once from a seed, so that every model gets the same ones.

Each prompt has a generator of its own, seeded by what it is (task, length, depth, number), so adding a length
or a depth changes no other prompt.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from megatron_ultralong.data.tokenizer.chat import ChatTokenizer
from megatron_ultralong.evaluation.backends.hf import LanguageModel
from megatron_ultralong.evaluation.benchmarks.haystack import Haystack
from megatron_ultralong.evaluation.benchmarks.retrieval import passkey_conversation, recall_conversation
from megatron_ultralong.evaluation.benchmarks.scoring import Prompt, exact_matches, scored_prompt
from megatron_ultralong.progress import track


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of the heatmap."""

    length: int
    depth: float
    prompts: list[Prompt]


def depth_grid(count: int) -> list[float]:
    """`count` depths from 0 to 1, evenly spread: 10 is the paper's 0, 11, 22 ... 100 %; 1 is the middle."""
    return [round(index / (count - 1), 4) for index in range(count)] if count > 1 else [0.5]


def passkey_cells(
    haystack: Haystack,
    tokenizer: ChatTokenizer,
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    samples: int,
    seed: int,
) -> list[Cell]:
    """Draw the prompts of the heatmap, `samples` for each length and depth.

    Raises:
        UserError: a length is too short for needle, question and answer.
    """
    grid = [(length, depth) for length in lengths for depth in depths]
    return [
        Cell(
            length,
            depth,
            [
                scored_prompt(
                    tokenizer,
                    passkey_conversation(
                        random.Random(f"passkey {seed} {length} {depth} {number}"),
                        haystack,
                        tokenizer,
                        length=length,
                        depth=depth,
                    ),
                )
                for number in range(samples)
            ],
        )
        for length, depth in track(grid, "drawing passkey prompts", "cells")
    ]


def passkey_rows(model: LanguageModel, cells: Sequence[Cell], description: str) -> list[dict[str, Any]]:
    """Ask the model all prompts.

    Returns:
        One row a cell: length (tokens), depth (0..1), score (share of keys read back exactly), samples.
    """
    prompts = [prompt for cell in cells for prompt in cell.prompts]
    right = iter(exact_matches(model, prompts, description))
    return [
        {
            "length": cell.length,
            "depth": cell.depth,
            "score": sum(all(next(right)) for _ in cell.prompts) / len(cell.prompts),
            "samples": len(cell.prompts),
        }
        for cell in cells
    ]


def recall_prompts(
    haystack: Haystack, tokenizer: ChatTokenizer, *, length: int, facts: int, samples: int, seed: int
) -> list[Prompt]:
    """Draw the short task: texts with `facts` facts that fill `length` tokens, as many questions, all judged.

    Raises:
        UserError: `length` is too short for the facts and questions.
    """
    return [
        scored_prompt(
            tokenizer,
            recall_conversation(
                random.Random(f"recall {seed} {length} {number}"),
                haystack,
                tokenizer,
                max_tokens=length,
                facts=facts,
                filler_tokens=length,
                questions=facts,
            ),
        )
        for number in range(samples)
    ]


def recall_score(model: LanguageModel, prompts: Sequence[Prompt], description: str) -> float:
    """Share of the questions answered exactly."""
    right = [answer for answers in exact_matches(model, prompts, description) for answer in answers]
    return sum(right) / len(right)
