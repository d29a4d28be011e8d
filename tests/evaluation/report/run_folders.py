"""Run folders as docs/evaluation_runs.md states them, with made-up answers: what a report is tested on."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RULER = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
)  # fmt: skip


def line(task: str, index: int, length: int, score: float, **changes: Any) -> dict[str, Any]:
    """A line of samples.jsonl."""
    row = {
        "task": task, "index": index, "length": length, "prompt_tokens": length - 60, "budget": 30, "depth": None,
        "place": None, "excerpt": ["The beginning of a text.", "", "What is the value?"],
        "prompt_hash": f"{task}-{length}-{index}", "how": "generate", "references": ["48213"],
        "answer": "48213." if score == 1 else "I do not know.", "score": score, "log_likelihood": None,
        "finished": True, "over_budget": False, "seconds": 0.25, "haystack_repeats": None,
    }  # fmt: skip
    return row | changes


def needle(index: int, length: int, depth: float, score: float, **changes: Any) -> dict[str, Any]:
    """A line of a needle's sample."""
    excerpt = [
        "grass is green & the sky is < blue.\n",
        "The red key is 48213.",
        "\nHere we go, there and back again.",
    ]
    return line("needles", index, length, score, depth=depth, place=[35, 56], excerpt=excerpt, **changes)


def window(index: int, length: int, buckets: Sequence[Sequence[float]], task: str = "by_position") -> dict[str, Any]:
    """A line of windows.jsonl."""
    return {"task": f"perplexity/{task}", "index": index, "length": length, "prompt_hash": f"{index}",
            "buckets": [list(bucket) for bucket in buckets], "seconds": 0.5}  # fmt: skip


def write_run(
    folder: Path,
    name: str,
    lines: Sequence[dict[str, Any]],
    *,
    context: int | None = 8192,
    windows: Sequence[dict[str, Any]] = (),
    skipped: Sequence[dict[str, Any]] = (),
    complete: bool = True,
) -> Path:
    """Write a run's files."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {
        "format": 1, "name": name, "model": f"models/{name}", "context_length": context,
        "backend": {"name": "hf", "dtype": "bf16", "device": "cpu"},
        "tokenizer": {"path": f"models/{name}", "fingerprint": "0" * 64, "vocab_size": 1024},
        "settings": {"tasks": sorted({row["task"] for row in lines}), "seed": 42, "form": "base", "official": None},
        "versions": {"python": "3.11"}, "git_commit": None, "when": "2026-11-26T09:00:00+00:00",
    }  # fmt: skip
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in lines:
        cells.setdefault((row["task"], row["length"]), []).append(row)
    results = {
        "format": 1,
        "complete": complete,
        "scores": [
            {"task": task, "length": length, "score": round(100 * sum(r["score"] for r in rows) / len(rows), 2),
             "samples": len(rows), "how": "generate", "budget": 30, "chance": 0.0, "empty": 0, "unfinished": 0,
             "over_budget": 0, "seconds": 1.0}
            for (task, length), rows in cells.items()
        ],
        "cells": [], "perplexity": [{"task": row["task"]} for row in windows], "skipped": list(skipped),
        "seconds": 71.0,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(header))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (folder / "windows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in windows))
    return folder


def large_run(folder: Path, name: str, context: int, skill: float) -> Path:
    """All of RULER from 4K to 1M, a grid of needles of 10 x 40, a short task, perplexity, and something skipped."""
    rng = random.Random(name)
    lengths = [4096 << power for power in range(9)]
    lines = []
    for task_place, task in enumerate(RULER):
        for length in lengths[: 6 if skill < 1 and task == "cwe" else 9]:
            chance = skill * (1.0 if length <= context else 0.75 * context / length) * (1 - 0.03 * task_place)
            lines += [
                line(f"ruler/{task}", index, length, float(rng.random() < chance), finished=rng.random() < 0.98)
                for index in range(20)
            ]
    for place in range(1, 41):
        length = round((1 << 20) * place / 40)
        chance = 0.995 if length <= context else 0.5 * context / length
        for row in range(10):
            lines += [needle(4 * row + trial, length, row / 9, float(rng.random() < chance)) for trial in range(4)]
    lines += [line("recall/facts", index, 4096, float(rng.random() < 0.97)) for index in range(100)]
    lines += [line("infinitebench/kv_retrieval", i, 131072, float(rng.random() < skill / 2)) for i in range(30)]
    edges = [0, *(32768 << power for power in range(6))]

    def bucket(start: int, end: int, nats: float) -> tuple[int, int, float, int]:
        return start, end, (nats + (2 if start >= context else 0) + rng.random() / 9) * (end - start), end - start

    windows = [
        window(index, 1 << 20, [bucket(a, b, 2.1 - 0.08 * n) for n, (a, b) in enumerate(itertools.pairwise(edges))])
        for index in range(12)
    ]
    windows += [
        window(index, length, [bucket(length - 512, length, 2.2 - 0.04 * place)], "last_window")
        for place, length in enumerate(lengths)
        for index in range(12)
    ]
    reason = "the words of the list run out: at most 5,000 can be drawn"
    skipped = [{"task": "ruler/cwe", "length": length, "samples": 20, "reason": reason} for length in lengths[6:]]
    return write_run(folder, name, lines, context=context, windows=windows, skipped=skipped if skill < 1 else ())
