"""A benchmark's tables: models by length with the averages papers report, tasks by length, every score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from megatron_ultralong.evaluation.report.markup import (
    details,
    difference_cell,
    figure,
    model_tag,
    number,
    score_cell,
    table,
    task_label,
)
from megatron_ultralong.evaluation.report.scale import length_label

Family = Mapping[str, Any]
_NONE = '<td class="none"></td>'


def overview(family: Family, names: Sequence[str]) -> str:
    """Models by length, each with its differences to the first, then published rows that have the same averages."""
    lengths = [str(length) for length in family["lengths"]]
    models = [family["models"][name] for name in names]
    averages = list(dict.fromkeys(average for model in models for average in model["averages"]))
    effective = any(model["effective_length"] for model in models)
    what = "mean over tasks" if len(family["tasks"]) > 1 else escape(family["tasks"][0])
    head = [what, *(length_label(int(length)) for length in lengths), *map(escape, averages)]
    head += ["effective length"] if effective else []
    rows = []
    for index, (name, model) in enumerate(zip(names, models, strict=True)):
        found = [model["lengths"].get(length) for length in lengths]
        means = [model["averages"].get(average) for average in averages]
        cells = [_mean_cell(row, len(family["tasks"])) for row in found]
        rows.append([model_tag(name, index), *cells, *map(_average_cell, means)])
        rows[-1] += [_effective_cell(model["effective_length"])] if effective else []
        gaps = [row and row["difference"] for row in (*found, *means)]
        if any(gaps):
            rows.append([f"<small>less {escape(names[0])}</small>", *map(difference_cell, gaps)])
            rows[-1] += [_NONE] if effective else []
    if averages:
        for row in family["published"]:
            cells = [_published_cell(row["scores"].get(average)) for average in averages]
            rows.append([f'<span class="published">{escape(row["model"])}</span>', *[_NONE] * len(lengths), *cells])
            rows[-1] += [_NONE] if effective else []
    return table(head, rows, "scores") + _published_note(family, bool(averages))


def _published_note(family: Family, shown: bool) -> str:
    rows = family["published"]
    if not rows:
        return ""
    if shown:
        return f"<p><small>In italics: published by {escape(rows[0]['source'])}, not measured here.</small></p>"
    columns = list(rows[0]["scores"])
    cells = [[escape(row["model"]), *(_published_cell(row["scores"][name]) for name in columns)] for row in rows]
    summary = f"Published by {escape(rows[0]['source'])}, of models with 8B parameters; not measured here"
    return details(summary, table(["", *map(escape, columns)], cells, "scores"))


def _starred(row: Mapping[str, Any], words: str) -> str:
    """A score that is not quite what its column says, and why."""
    return score_cell(row).replace('title="', f'title="{escape(words)}; ').replace("</td>", "*</td>")


def _mean_cell(row: Mapping[str, Any] | None, tasks: int) -> str:
    """A mean over tasks; a star where some were not asked."""
    if row is None or row["tasks"] == tasks:
        return score_cell(row)
    return _starred(row, f"over {row['tasks']} of {tasks} tasks")


def _average_cell(row: Mapping[str, Any] | None) -> str:
    """An average; a star where it lacks lengths or tasks, so that it is none of the papers'."""
    if row is None:
        return score_cell(row)
    lacks = ["without " + ", ".join(map(length_label, row["missing"]))] if row["missing"] else []
    lacks += [f"over {row['tasks']} of {row['of']} tasks"] if row["tasks"] < row["of"] else []
    return _starred(row, ", ".join(lacks)) if lacks else score_cell(row)


def _effective_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return _NONE
    words = length_label(row["tokens"]) if row["tokens"] else "none"
    if row["tasks"] < row["of"]:
        words += f" <small>({row['tasks']} of {row['of']} tasks)</small>"
    return f'<td class="words" title="the longest length above {row["threshold"]}">{words}</td>'


def _published_cell(score: float | None) -> str:
    if score is None:
        return _NONE
    shown = f"{score:.1f}" if round(score, 1) == score else f"{score:.2f}"
    return f'<td class="published">{shown}</td>'


def task_tables(family: Family, names: Sequence[str]) -> str:
    """Tasks by length, a table a model and one of its differences to the first; one table where there is one length."""
    lengths = [str(length) for length in family["lengths"]]
    if len(family["tasks"]) == 1:
        return ""
    if len(lengths) == 1:
        return _models_across(family, names, lengths[0])
    head = ["task", *(length_label(int(length)) for length in lengths)]
    tables = []
    for index, name in enumerate(names):
        cells = family["models"][name]["tasks"]
        rows = [[escape(task_label(task)), *(score_cell(cells[task].get(length)) for length in lengths)]
                for task in family["tasks"]]  # fmt: skip
        tables.append(figure(table(head, rows, "scores"), model_tag(name, index)))
    for index, name in enumerate(names):
        cells = family["models"][name]["tasks"]
        if any(cell["difference"] for row in cells.values() for cell in row.values()):
            rows = [
                [escape(task_label(task)), *(difference_cell(cells[task].get(length, {}).get("difference"))
                                             for length in lengths)]
                for task in family["tasks"]
            ]  # fmt: skip
            caption = f"{model_tag(name, index)} less {escape(names[0])} <small>over the same samples</small>"
            tables.append(figure(table(head, rows, "scores"), caption))
    return '<div class="side wide">' + "".join(tables) + "</div>"


def _models_across(family: Family, names: Sequence[str], length: str) -> str:
    head, rows = ["task"], []
    for index, name in enumerate(names):
        head += [model_tag(name, index)] + ([f"less {escape(names[0])}"] if index else [])
    for task in family["tasks"]:
        found = [family["models"][name]["tasks"][task].get(length) for name in names]
        cells = [score_cell(found[0])]
        for row in found[1:]:
            cells += [score_cell(row), difference_cell(row and row["difference"])]
        rows.append([escape(task_label(task)), *cells])
    return table(head, rows, "scores")


def every_score(family: Family, names: Sequence[str]) -> str:
    """A row a task, model and length: the score and all that is known of it."""
    rows = []
    for task in family["tasks"]:
        for index, name in enumerate(names):
            for length, row in family["models"][name]["tasks"][task].items():
                rows.append([
                    escape(task_label(task)), model_tag(name, index), f"{int(length):,}", _bracketed(row),
                    "" if row["difference"] is None else _bracketed(row["difference"], True),
                    "" if row["chance"] is None else number(row["chance"]), f"{row['samples']:,}",
                    escape(row["how"] or ""), f"{row['unfinished']:,}", f"{row['over_budget']:,}", f"{row['empty']:,}",
                    "" if row["haystack_repeats"] is None else f"{row['haystack_repeats']:.1f}",
                ])  # fmt: skip
    head = ["task", "model", "tokens", "score", f"less {escape(names[0])}", "chance", "samples", "how",
            "cut at budget", "over budget", "empty", "haystack repeats"]  # fmt: skip
    return table(head, rows)


def _bracketed(row: Mapping[str, Any], signed: bool = False) -> str:
    low, high = number(row["low"], signed), number(row["high"], signed)
    return f"{number(row['score'], signed)} <small>[{low}, {high}]</small>"
