"""The report: one HTML file that needs nothing else, for a reader who has a minute, or an hour.

First what it comes to, then what to know about it, then each benchmark from picture to every number, samples to open,
and what it was made with. Well-formed XML, no scripts, nothing from the network; each picture has a text that says the
same, each point and cell its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from megatron_ultralong.evaluation.report.gathering import Model
from megatron_ultralong.evaluation.report.markup import model_tag, number, text
from megatron_ultralong.evaluation.report.needle_section import needle_section
from megatron_ultralong.evaluation.report.opened_samples import Opened
from megatron_ultralong.evaluation.report.page_style import STYLE
from megatron_ultralong.evaluation.report.perplexity_section import perplexity_section
from megatron_ultralong.evaluation.report.sample_section import sample_section
from megatron_ultralong.evaluation.report.scale import length_label, model_color
from megatron_ultralong.evaluation.report.score_section import score_section, title_of
from megatron_ultralong.evaluation.report.settings_section import settings_section, skipped_section
from megatron_ultralong.evaluation.report.short_section import short_section
from megatron_ultralong.evaluation.report.stage_curves import Stage
from megatron_ultralong.evaluation.report.training_section import training_section

Result = Mapping[str, Any]
_FIRST = ("needles", "ruler")


def report_page(result: Result, models: Sequence[Model], samples: Sequence[Opened], curves: Mapping[str, Stage]) -> str:
    """The page as text.

    Args:
        result: what compare.json holds, see `compare_runs`.
        models: the runs it was made from.
        samples: to open.
        curves: of training, by stage.
    """
    names = [model.name for model in models]
    title = _title(models)
    sections = _sections(result, models, samples, curves)
    links = "".join(f'<a href="#{name}">{escape(label)}</a>' for name, label, _ in sections)
    parts = [
        f"<header>\n<h1>{title}</h1>\n<p>{_subtitle(result, models)}</p>\n</header>",
        _cards(result, names),
        _notes(result["findings"]),
        f"<nav>{links}</nav>",
        *(content for _, _, content in sections),
        "<footer>Made by tools/evaluate.py compare; compare.json beside it holds every number.</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n<link rel="icon" href="data:," />\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _sections(
    result: Result, models: Sequence[Model], samples: Sequence[Opened], curves: Mapping[str, Stage]
) -> list[tuple[str, str, str]]:
    """Name, label and content of each that has something to show."""
    names, limit = [model.name for model in models], models[0].context_length
    found = []
    if result["needles"]:
        contexts = {model.name: model.context_length for model in models}
        found.append(("needles", "Needles", needle_section(result["needles"], contexts, names)))
    families = sorted(result["families"], key=lambda family: family not in _FIRST)
    for family in families:
        if family == "needles" and result["needles"]:
            continue
        found.append((family, title_of(family), score_section(family, result["families"][family], names, limit)))
    if result["short"]:
        found.append(("short", "Short context", short_section(result["short"], names)))
    if result["perplexity"]:
        found.append(("perplexity", "Perplexity", perplexity_section(result["perplexity"], names, limit)))
    if samples:
        found.append(("samples", "Samples", sample_section(samples, names)))
    if result["skipped"]:
        found.append(("skipped", "Skipped", skipped_section(result["skipped"], names)))
    if curves:
        found.append(("training", "Training", training_section(curves)))
    found.append(("settings", "Settings", settings_section(models, result["extra"])))
    return found


def _title(models: Sequence[Model]) -> str:
    first, last = models[0].context_length, models[-1].context_length
    if first and last and first < last:
        return f"From {length_label(first)} to {length_label(last)} tokens of context"
    return f"What {_listed([text(model.name) for model in models])} can find in long texts"


def _subtitle(result: Result, models: Sequence[Model]) -> str:
    answers = sum(len(cell) for model in models for cell in model.cells.values())
    days = sorted({str(run.header["when"])[:10] for model in models for run in model.runs})
    backends = sorted({str(run.header["backend"].get("name")) for model in models for run in model.runs})
    return (
        f"{_listed([model_tag(model.name, index) for index, model in enumerate(models)])}: {answers:,} answers, "
        f"greedy, by the {text(_listed(backends))} backend, "
        f'<span class="nowrap">{text(_listed(days))}</span>.'
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _cards(result: Result, names: Sequence[str]) -> str:
    """The few numbers that matter, a model under the other."""
    cards = []
    for family in sorted(result["families"], key=lambda family: family not in _FIRST):
        found = result["families"][family]
        longest = found["lengths"][-1]
        rows = {name: found["models"][name]["lengths"].get(str(longest)) for name in names}
        label = title_of(family).removesuffix(" by length")
        tasks = f", {len(found['tasks'])} tasks" if len(found["tasks"]) > 1 else ""
        cards.append(_card(f"{label} at {length_label(longest)} tokens{tasks}", rows, names))
    by_position = result["perplexity"].get("perplexity/by_position")
    if by_position:
        longest = max(row["length"] for rows in by_position.values() for row in rows)
        last = {name: by_position[name][-1] for name in names if name in by_position}
        last = {name: row for name, row in last.items() if row["length"] == longest}
        span = next(iter(last.values()))
        label = f"Perplexity at positions {length_label(span['from'])} to {length_label(span['to'])}, lower is better"
        lines = [_line(name, names, f"{row['perplexity']:,.1f}", None) for name, row in last.items()]
        cards.append(f'<div class="card"><h3>{label}</h3>{"".join(lines)}</div>')
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _card(label: str, rows: Mapping[str, Mapping[str, Any] | None], names: Sequence[str]) -> str:
    lines = [
        _line(name, names, "&#8211;" if row is None else number(row["score"]), 0 if row is None else row["score"])
        for name, row in rows.items()
    ]
    return f'<div class="card"><h3>{escape(label)}</h3>{"".join(lines)}</div>'


def _line(name: str, names: Sequence[str], shown: str, score: float | None) -> str:
    index = names.index(name)
    bar = ""
    if score is not None:
        bar = f'<small><i style="width:{score:.1f}%;background:{model_color(index)}"></i></small>'
    return f"<div>{model_tag(name, index)}<b>{shown}</b>{bar}</div>"


def _notes(findings: Sequence[str]) -> str:
    if not findings:
        return ""
    return '<aside class="notes"><ul>' + "".join(f"<li>{text(words)}</li>" for words in findings) + "</ul></aside>"
