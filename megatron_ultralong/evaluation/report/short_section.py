"""The report's short-context benchmarks: what extension must not cost, with the paper's rows beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from megatron_ultralong.evaluation.report.markup import model_tag, number, section, table
from megatron_ultralong.evaluation.report.published import SOURCE, published

_NONE = '<td class="none">&#8211;</td>'


def short_section(found: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> str:
    """The section: a row a model, a column a benchmark.

    Args:
        found: model -> rows {task, label, metric, shots, score, samples, truncated}, as `short` writes them.
        names: of all models, in the order of their colours.
    """
    theirs = published("short")
    labels = list(dict.fromkeys(row["label"] for rows in found.values() for row in rows))
    paper = [name for name in theirs[0]["scores"] if name in labels]
    rows = []
    for name in names:
        if name in found:
            cells = {row["label"]: _cell(row) for row in found[name]}
            rows.append([model_tag(name, names.index(name)), *(cells.get(label, _NONE) for label in labels)])
    for row in theirs if paper else ():
        cells = {name: f'<td class="published">{row["scores"][name]:.2f}</td>' for name in paper}
        rows.append([f'<span class="published">{escape(row["model"])}</span>', *(cells.get(n, _NONE) for n in labels)])
    note = f"<p><small>In italics: published by {SOURCE}, not measured here.</small></p>" if paper else ""
    return section(
        "short",
        "Short context",
        "Benchmarks of short prompts through lm-evaluation-harness: what extension must not cost.",
        table(["", *map(escape, labels)], rows, "scores"),
        note,
    )


def _cell(row: Mapping[str, Any]) -> str:
    words = f"{row['metric']}, {row['shots']} shots, {row['samples']:,} questions"
    words += f", {row['truncated']:,} lost their beginning" if row["truncated"] else ""
    star = "*" if row["truncated"] else ""
    return f'<td title="{escape(words)}">{number(row["score"])}{star}</td>'
