"""Pieces of HTML that every section is made of, as well-formed XML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from megatron_ultralong.evaluation.report.scale import model_color, score_color, text_color

Row = Mapping[str, Any]


def task_label(task: str) -> str:
    """A task's name without its family's: "vt" of "ruler/vt"; a family's only task is called as it is."""
    return task.partition("/")[2] or task


def text(content: str) -> str:
    """Any text as markup; what XML does not allow, or a reader cannot see, becomes a replacement character."""
    shown = (character if character.isprintable() or character in "\n\t" else "\ufffd" for character in content)
    return escape("".join(shown))


def section(name: str, title: str, words: str, *parts: str) -> str:
    """A titled part of the page; `words` and `parts` are markup."""
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n<p>{words}</p>\n' + "\n".join(parts) + "\n</section>"


def details(summary: str, content: str, kind: str = "") -> str:
    """Something to open; both are markup."""
    return f'<details class="{kind}"><summary>{summary}</summary>\n{content}\n</details>'


def figure(picture: str, caption: str, kind: str = "") -> str:
    """A picture with its caption above; both are markup."""
    return f'<figure class="{kind}"><figcaption>{caption}</figcaption>{picture}</figure>'


def legend(names: Sequence[str]) -> str:
    """The models' colours."""
    return '<p class="legend">' + " ".join(model_tag(name, index) for index, name in enumerate(names)) + "</p>"


def model_tag(name: str, index: int) -> str:
    """A model's name with its colour."""
    return f'<span class="model"><i style="background:{model_color(index)}"></i>{escape(name)}</span>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls by itself; its first column names the row.

    Args:
        head: markup of each column's head.
        rows: markup of each cell; one that begins with "<td" is a cell already.
        kind: further classes.
    """
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join("<tr>" + "".join(_cell(cell, place) for place, cell in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(content: str, place: int) -> str:
    if content.startswith("<td"):
        return content
    return f'<th scope="row">{content}</th>' if place == 0 else f"<td>{content}</td>"


def score_cell(row: Row | None) -> str:
    """A coloured cell with its interval behind it; a grey one where nothing was asked."""
    if row is None:
        return '<td class="none">&#8211;</td>'
    style = f"background:{score_color(row['score'])};color:{text_color(row['score'])}"
    return f'<td class="heat" style="{style}" title="{escape(with_interval(row))}">{number(row["score"])}</td>'


def difference_cell(row: Row | None) -> str:
    """How much better or worse, bold where the interval leaves out zero."""
    if row is None:
        return '<td class="none">&#8211;</td>'
    sure = row["low"] > 0 or row["high"] < 0
    shown = number(row["score"], True) if abs(row["score"]) < 10 else f"{row['score']:+.0f}"
    kind = ("better" if row["score"] > 0 else "worse") + " sure" if sure else "unsure"
    return f'<td class="{kind}" title="{escape(with_interval(row, signed=True))}">{shown}</td>'


def with_interval(row: Row, signed: bool = False) -> str:
    """A score in words."""
    if "low" not in row:
        return f"{number(row['score'])}, {row['samples']:,} samples"
    low, high = number(row["low"], signed), number(row["high"], signed)
    return f"{number(row['score'], signed)}, 95 % interval {low} to {high}, {row['samples']:,} samples"


def number(score: float, signed: bool = False) -> str:
    """A score as it is shown: one decimal, none for a round hundred."""
    shown = f"{score:+.1f}" if signed else f"{score:.1f}"
    return "0.0" if shown in ("-0.0", "+0.0") else "100" if shown == "100.0" else shown
