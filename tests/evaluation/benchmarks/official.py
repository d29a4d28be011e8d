"""Official scorers, from clones on disk: functions taken out of their files, with what these import put in place.

OFFICIAL_INFINITEBENCH, OFFICIAL_LVEVAL, OFFICIAL_LONGBENCH and OFFICIAL_BABILONG name the clones; a test that wants
one that is not named skips itself.
"""

from __future__ import annotations

import ast
import json
import os
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest


def clone(name: str) -> Path:
    """The clone that OFFICIAL_`name` names."""
    folder = os.environ.get(f"OFFICIAL_{name}")
    if not folder:
        pytest.skip(f"OFFICIAL_{name} names no clone")
    return Path(folder)


def definitions(path: Path, **given: Any) -> dict[str, Any]:
    """What a file's functions and constants are, its imports left out and `given` in their place."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kept = [
        node
        for node in body
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) not in given)
    ]
    names = {"re": re, "json": json, "string": string, "Counter": Counter, **given}
    exec(compile(ast.Module(kept, []), str(path), "exec"), names)
    return names


class HuggingFaceRouge:
    """What `evaluate.load("rouge")` gives, which cannot be had without a network: rouge-score, several references."""

    def compute(self, predictions: list[str], references: list[Any], use_aggregator: bool) -> dict[str, list[float]]:
        from rouge_score.rouge_scorer import RougeScorer

        assert not use_aggregator
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=False)
        several = isinstance(references[0], list)
        score = scorer.score_multi if several else scorer.score
        found = [score(reference, prediction) for reference, prediction in zip(references, predictions, strict=True)]
        return {"rougeLsum": [each["rougeLsum"].fmeasure for each in found]}


def infinitebench() -> dict[str, Any]:
    """src/compute_scores.py."""
    path = clone("INFINITEBENCH") / "src" / "compute_scores.py"
    return definitions(path, ROUGE_SCORER=HuggingFaceRouge(), tqdm=lambda items: items, Path=Path)


def lveval() -> dict[str, Any]:
    """metrics.py, the choice of metrics in config.py, and the scorer of evaluation.py."""
    import jieba
    import rouge

    folder = clone("LVEVAL")
    metrics = definitions(folder / "metrics.py", jieba=jieba, Rouge=rouge.Rouge)
    config = definitions(folder / "config.py", **metrics)
    return definitions(folder / "evaluation.py", DATASET_METRIC=config["DATASET_METRIC"])


def longbench() -> dict[str, Any]:
    """`extract_answer` of pred.py."""
    path = clone("LONGBENCH") / "pred.py"
    source = path.read_text(encoding="utf-8")
    wanted = [node for node in ast.parse(source).body if getattr(node, "name", "") == "extract_answer"]
    names: dict[str, Any] = {"re": re}
    exec(compile(ast.Module(wanted, []), str(path), "exec"), names)
    return names


def babilong() -> dict[str, Any]:
    """babilong/metrics.py."""
    return definitions(clone("BABILONG") / "babilong" / "metrics.py")
