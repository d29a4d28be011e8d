"""The report's ends: what was skipped, how long all took, and with what it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ultralong.evaluation.report.gathering import Model
from megatron_ultralong.evaluation.report.markup import details, model_tag, section, table, text
from megatron_ultralong.evaluation.report.scale import length_label
from megatron_ultralong.progress import duration


def skipped_section(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """What was not asked, and why."""
    cells = [
        [model_tag(row["model"], names.index(row["model"])), text(row["task"]),
         length_label(row["length"]) if row["length"] else "",
         "all" if row["samples"] is None else f"{row['samples']:,}", text(row["reason"])]
        for row in rows
    ]  # fmt: skip
    return section(
        "skipped",
        "Skipped",
        "What could not be asked. It has no score: it is not a zero, and no average counts it.",
        table(["model", "task", "tokens", "samples", "why"], cells, "prose"),
    )


def settings_section(models: Sequence[Model], extra: Mapping[str, Any]) -> str:
    """What each run was asked with, and what else is known."""
    parts = []
    for index, model in enumerate(models):
        for run in model.runs:
            answering = duration(run.results.get("seconds") or 0)
            rows = [("run", str(run.folder)), ("answering took", answering)]
            rows += [(key, _words(value)) for key, value in run.header.items() if key not in ("format", "settings")]
            rows += [(key, _words(value)) for key, value in run.header["settings"].items()]
            parts.append(details(model_tag(model.name, index), _listing(rows)))
    seconds = extra.get("seconds")
    if isinstance(seconds, dict):
        rows = [(stage, duration(took)) for stage, took in seconds.items()]
        parts.append(details("Wall time of each stage", _listing(rows)))
    rest = [(key, _words(value)) for key, value in extra.items() if key != "seconds" or not isinstance(value, dict)]
    if rest:
        parts.append(_listing(rest))
    return section("settings", "Settings", "With these the runs can be made again.", *parts)


def _listing(rows: Sequence[tuple[str, str]]) -> str:
    return table(
        ["", ""], [[text(key.replace("_", " ")), f"<code>{text(value)}</code>"] for key, value in rows], "list"
    )


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
