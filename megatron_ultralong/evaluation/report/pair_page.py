"""The report: one HTML file that needs nothing else, for a reader who has a minute, or an hour.

Pictures are embedded, each with a text that says the same; every number in a picture is in a table below it.
The page is written as well-formed XML, without scripts and without the network.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from megatron_ultralong.evaluation.report import plots
from megatron_ultralong.evaluation.report.plots import length_label
from megatron_ultralong.files import atomic_file
from megatron_ultralong.progress import duration

Curves = Mapping[str, Sequence[Mapping[str, float]]]
"""Stage -> its steps {step, loss, grad_norm}."""

_STYLE = """
:root { --ink: #1f2933; --muted: #616e7c; --line: #e4e7eb; --base: #b5432a; --extended: #0b6e69; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .3rem; }
p { margin: .3rem 0 1rem; max-width: 46rem; color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; margin: 1.8rem 0; }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.2rem; }
.card dt { color: var(--muted); font-size: .9rem; }
.card dd { margin: .2rem 0 0; font-size: 1.55rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.card .before { color: var(--base); } .card .after { color: var(--extended); }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; }
summary { cursor: pointer; color: var(--extended); padding: .3rem 0; }
code { font-size: .9em; overflow-wrap: anywhere; }
"""


def model_names(results: Mapping[str, Any]) -> list[str]:
    """The models of a result, in order."""
    return [name for name, value in results.items() if isinstance(value, dict) and "passkey" in value]


def write_report(results: Mapping[str, Any], folder: Path, curves: Curves | None = None) -> None:
    """Write `report.html` and `heatmap.png` into `folder`.

    Args:
        results: see `evaluate.evaluate`; keys it does not know are listed as they are.
        folder: where to.
        curves: stage -> its steps {step, loss, grad_norm}, from metrics.jsonl files.
    """
    models = model_names(results)
    heatmap = plots.heatmaps(results, models)
    for name, content in (
        ("heatmap.png", heatmap),
        ("report.html", _page(results, models, heatmap, curves or {}).encode()),
    ):
        with atomic_file(Path(folder) / name) as temporary:
            temporary.write_bytes(content)


def _page(results: Mapping[str, Any], models: Sequence[str], heatmap: bytes, curves: Curves) -> str:
    first, last = models[0], models[-1]
    target = length_label(results["target_length"])
    title = f"From {length_label(results[first]['context_length'])} to {target} tokens of context"
    parts = [
        f"<h1>{title}</h1>",
        f"<p>What {_names(models)} can find, predict and remember. Every model was asked the same prompts, "
        "loaded from its folder with plain transformers.</p>",
        _cards(results, first, last, target),
        _passkey(results, models, heatmap),
        _perplexity(results, models, target),
        _short_task(results, models),
        _training(curves) if curves else "",
        _seconds(results, models),
        _everything_else(results, models),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _cards(results: Mapping[str, Any], first: str, last: str, target: str) -> str:
    """The four numbers that matter, before and after."""
    before, after = results[first], results[last]
    final = results["perplexity"][first][-1], results["perplexity"][last][-1]
    span = f"{length_label(final[0]['from'])} to {length_label(final[0]['to'])}"
    cards = [
        ("Context, tokens", length_label(before["context_length"]), length_label(after["context_length"])),
        (f"Passkey at {target} tokens", f"{before['passkey_at_target']:.0%}", f"{after['passkey_at_target']:.0%}"),
        (f"Perplexity, positions {span}", *(f"{row['perplexity']:,.1f}" for row in final)),
        ("Short task", f"{before['short_task']:.1%}", f"{after['short_task']:.1%}"),
    ]
    return (
        '<dl class="cards">'
        + "".join(
            f'<div class="card"><dt>{escape(label)}</dt><dd><span class="before">{old}</span> &#8594; '
            f'<span class="after">{new}</span></dd></div>'
            for label, old, new in cards
        )
        + "</dl>"
    )


def _passkey(results: Mapping[str, Any], models: Sequence[str], heatmap: bytes) -> str:
    limit = results[models[0]]["context_length"]
    words = []
    for name in models:
        rows = results[name]["passkey"]
        for label, part in (
            (f"up to {length_label(limit)} tokens", [row["score"] for row in rows if row["length"] <= limit]),
            ("beyond", [row["score"] for row in rows if row["length"] > limit]),
        ):
            if part:
                words.append(f"{name} {label}: {sum(part) / len(part):.0%} found")
    lengths = sorted({row["length"] for row in results[models[0]]["passkey"]})
    tables = []
    for name in models:
        scores = {(row["depth"], row["length"]): row["score"] for row in results[name]["passkey"]}
        cells = [
            [f"{depth:.0%}", *(f"{scores[depth, length]:.0%}" for length in lengths)]
            for depth in sorted({depth for depth, _ in scores})
        ]
        tables.append(_table([f"{name}: depth", *map(length_label, lengths)], cells))
    return _section(
        "Passkey retrieval",
        "A sentence with a five-digit key lies somewhere in real text; the question follows at the end. A cell is "
        "the share of keys that the model's greedy answer gives exactly, given the answer's opening words.",
        heatmap,
        "Heatmaps of passkey retrieval by depth and length. " + "; ".join(words) + ".",
        "<br />".join(tables),
    )


def _perplexity(results: Mapping[str, Any], models: Sequence[str], target: str) -> str:
    columns = {name: results["perplexity"][name] for name in models}
    words = [f"{name}: {rows[0]['perplexity']:,.1f} to {rows[-1]['perplexity']:,.1f}" for name, rows in columns.items()]
    cells = [
        [f"{row['from']:,} to {row['to']:,}", *(f"{rows[index]['perplexity']:,.2f}" for rows in columns.values())]
        + [f"{row['tokens']:,}"]
        for index, row in enumerate(columns[models[0]])
    ]
    return _section(
        "Perplexity by position",
        f"Held-out documents in non-overlapping windows of {target} tokens: lower is better, and a model that uses "
        "its context predicts later tokens better.",
        plots.perplexity_lines(results, models),
        "Perplexity from the first to the last positions. " + "; ".join(words) + ".",
        _table(["positions", *models, "tokens"], cells),
    )


def _short_task(results: Mapping[str, Any], models: Sequence[str]) -> str:
    scores = {name: f"{results[name]['short_task']:.1%}" for name in models}
    length, context = results["settings"]["recall_length"], results[models[0]]["context_length"]
    where = "the" if length == context else "within the"
    return _section(
        "The short task",
        f"Facts at random depths of a text of {length_label(length)} tokens, {where} context of "
        f"{escape(models[0])}, and a question about each: what extension must not cost.",
        plots.short_task_bars(results, models),
        "Share answered exactly: " + "; ".join(f"{name} {score}" for name, score in scores.items()) + ".",
        _table(
            ["model", "answered exactly", "questions"],
            [[name, score, results[name]["short_task_questions"]] for name, score in scores.items()],
        ),
    )


def _training(curves: Curves) -> str:
    ends = {name: (f"{rows[0]['loss']:.3f}", f"{rows[-1]['loss']:.3f}") for name, rows in curves.items()}
    return _section(
        "Training",
        "Loss and gradient norm of each stage.",
        plots.training_curves(curves),
        "; ".join(f"{name}: loss {first} at first, {last} at last" for name, (first, last) in ends.items()),
        _table(
            ["stage", "steps", "first loss", "last loss"],
            [[name, len(curves[name]), first, last] for name, (first, last) in ends.items()],
        ),
    )


def _section(title: str, words: str, picture: bytes, alt: str, table: str) -> str:
    data = base64.b64encode(picture).decode("ascii")
    return (
        f"<section>\n<h2>{title}</h2>\n<p>{words}</p>\n"
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}" /></figure>\n'
        f"<details><summary>The numbers</summary>{table}</details>\n</section>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column names the row; the others are numbers."""

    def line(tag: str, cells: Sequence[Any]) -> str:
        kinds = ["", *[' class="number"'] * (len(cells) - 1)]
        return (
            "<tr>" + "".join(f"<{tag}{k}>{escape(str(c))}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"
        )

    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{line("th", head)}</thead><tbody>{body}</tbody></table></div>'


def _seconds(results: Mapping[str, Any], models: Sequence[str]) -> str:
    rows = [[stage, duration(seconds)] for stage, seconds in results.get("seconds", {}).items()]
    for name in models:
        rows += [[f"evaluation of {name}: {task}", duration(s)] for task, s in results[name]["seconds"].items()]
    return f"<section>\n<h2>Time</h2>\n{_table(['stage', 'wall time'], rows)}\n</section>"


def _everything_else(results: Mapping[str, Any], models: Sequence[str]) -> str:
    """Settings and whatever else the results hold, one line each."""
    shown = {*models, "perplexity", "seconds", "settings", "target_length"}
    rows = [[f"folder of {name}", results[name]["folder"]] for name in models]
    rows += [[key, value] for key, value in results["settings"].items()]
    rows += [[key, value] for key, value in results.items() if key not in shown]
    body = "".join(
        f'<tr><th scope="row">{escape(key.replace("_", " "))}</th><td><code>{escape(_words(value))}</code></td></tr>'
        for key, value in rows
    )
    return f'<section>\n<h2>Settings</h2>\n<div class="scroll"><table><tbody>{body}</tbody></table></div>\n</section>'


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _names(models: Sequence[str]) -> str:
    return escape(models[0] if len(models) == 1 else ", ".join(models[:-1]) + " and " + models[-1])
