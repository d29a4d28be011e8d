"""A packed sample for people: which documents it holds, where the separators are, which labels do not count.

`inspect_sample` reads and measures; `as_text` and `as_html` show. Everything that comes from the data is escaped: HTML
in the page, control characters on the terminal. Cost: one sample is read, and only the window that is shown is decoded.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.reading.dataset import PackedDataset
from megatron_ultralong.errors import UserError

_COLOURS = ("#cfe8ff", "#ffe3c2", "#d7f2d0", "#f3d6f5", "#fff3b0", "#d3f0ef")
_TERMINAL = (44, 42, 45, 46, 43, 41)

Decode = Callable[[Sequence[int]], str]


@dataclasses.dataclass(frozen=True)
class Segment:
    """A run of tokens of one kind."""

    begin: int
    """Its first position in the sample."""
    end: int
    """After its last."""
    kind: str
    """"document", "separator" or "padding"."""
    document: int
    """Its number in the sample, from 0."""
    corpus_id: int
    """Its number in the corpus; -1 for padding."""
    counts: bool
    """Whether the loss counts where these tokens are the label."""
    text: str
    """Decoded."""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A sample and its window that is shown."""

    title: str
    facts: dict[str, str]
    """Name and value of what is worth knowing, lengths of the documents included."""
    segments: tuple[Segment, ...]
    """The window, in order."""


def inspect_sample(dataset: PackedDataset, i: int, decode: Decode, begin: int = 0, tokens: int = 4096) -> Inspection:
    """Read sample `i` and decode the positions from `begin` to `begin + tokens`.

    Raises:
        UserError: no such sample, or a window outside it.
    """
    length = dataset.sequence_length
    if not 0 <= i < len(dataset):
        raise UserError(f"samples: {i} is none of the {len(dataset)} samples of {dataset.index.folder}; count from 0.")
    if not 0 <= begin < length or tokens < 1:
        raise UserError(f"begin: {begin} with {tokens} tokens is no part of a sample of {length}; choose from 0 on.")
    end = min(begin + tokens, length)
    sample, layout = dataset.read(i), dataset.layout(i)
    labels = np.concatenate([[1.0], sample.loss_mask[:-1]])  # of each position as a label; the first is none here
    ids = dataset.documents(i)
    kinds = _kinds(layout.starts, layout.ends, length)
    numbers = np.searchsorted(layout.starts, np.arange(length), side="right") - 1
    cuts = np.flatnonzero(np.diff(kinds) | np.diff(numbers) | np.diff(labels > 0)) + 1
    inner = cuts[(cuts > begin) & (cuts < end)].tolist()
    segments = [
        Segment(
            first,
            last,
            ("document", "separator", "padding")[kinds[first]],
            int(numbers[first]),
            int(ids[numbers[first]]) if kinds[first] != 2 else -1,
            bool(labels[first] > 0),
            decode(sample.tokens[first:last].tolist()) if kinds[first] != 2 else "",
        )
        for first, last in itertools.pairwise([begin, *inner, end])
    ]
    facts = _facts(dataset, sample.loss_mask, kinds, layout.starts, layout.ends)
    facts["shown"] = f"positions {begin:,} to {end - 1:,} of {length:,}"
    return Inspection(f"{dataset.index.folder}: sample {i} of {len(dataset):,}", facts, tuple(segments))


def _kinds(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int8]:
    """int8 [length]: 0 in documents, 1 in separators, 2 in padding."""
    kinds = np.full(length, 2, dtype=np.int8)
    for start, end, following in zip(starts[:-1].tolist(), ends.tolist(), starts[1:].tolist(), strict=True):
        kinds[start:end] = 0
        kinds[end:following] = 1
    return kinds


def _facts(
    dataset: PackedDataset,
    loss_mask: npt.NDArray[np.float32],
    kinds: npt.NDArray[np.int8],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
) -> dict[str, str]:
    manifest, length = dataset.index.manifest, dataset.sequence_length
    inside = np.minimum(ends, length) - np.minimum(starts[:-1], length)
    inside = inside[inside > 0]
    facts: dict[str, Any] = {
        "packing": manifest["packing"].replace("_", "-"),
        "separator": manifest["separator"] or "none",
        "documents": f"{len(inside):,} (whole or in part)",
        "tokens of documents": f"{int((kinds == 0).sum()):,}",
        "tokens of separators": f"{int((kinds == 1).sum()):,}",
        "padding": f"{int((kinds == 2).sum()):,}",
        "labels that count": f"{int(loss_mask.sum()):,} of {length:,}",
    }
    if len(inside):
        quartiles = [int(value) for value in np.percentile(inside, [0, 25, 50, 75, 100], method="nearest")]
        facts["lengths (least, quartiles, most)"] = ", ".join(f"{value:,}" for value in quartiles)
    return {name: str(value) for name, value in facts.items()}


def as_text(inspection: Inspection, colours: bool) -> str:
    """For a terminal: documents in turn coloured, separators in brackets, uncounted labels struck through.

    Without colours, what does not count stands between tildes.
    """
    lines = [inspection.title, *(f"  {name}: {value}" for name, value in inspection.facts.items())]
    last = None
    for piece in inspection.segments:
        if (piece.document, piece.kind == "padding") != last:
            last = (piece.document, piece.kind == "padding")
            lines.append(_heading(piece))
        text = _printable(piece.text)
        text = f"[{text}]" if piece.kind == "separator" else text
        if piece.kind == "padding":
            continue
        if colours:
            style = f"{_TERMINAL[piece.document % len(_TERMINAL)]};{'7' if piece.kind == 'separator' else '37'}"
            lines.append(f"\x1b[{style}{'' if piece.counts else ';9'}m{text}\x1b[0m")
        else:
            lines.append(text if piece.counts else f"~{text}~")
    return "\n".join(lines)


def _heading(piece: Segment) -> str:
    if piece.kind == "padding":
        return f"-- position {piece.begin:,}: {piece.end - piece.begin:,} tokens of padding"
    return f"-- position {piece.begin:,}: document {piece.document} of the sample, {piece.corpus_id} of the corpus"


def _printable(text: str) -> str:
    """Control characters written out, so that data cannot steer a terminal; line feeds and tabs stay."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_html(inspections: Sequence[Inspection]) -> str:
    """A page without scripts and outside links: documents coloured, separators framed, uncounted labels struck."""
    return (
        "<!doctype html>\n<meta charset='utf-8'>\n<title>Packed samples</title>\n"
        f"<style>{_STYLE}</style>\n{_LEGEND}\n" + "\n".join(map(_section, inspections)) + "\n"
    )


_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; color: #222 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1em } dt { color: #666 } dd { margin: 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.6 ui-monospace, monospace }
.separator { outline: 1px solid #333; font-weight: bold } .padding { color: #888; font-style: italic }
.uncounted { text-decoration: line-through; opacity: 0.6 }
.map { display: flex; height: 1.2em; border: 1px solid #999; overflow: hidden } .map span { height: 100% }"""
_LEGEND = (
    "<p>Each colour is a document; <span class='separator'>framed</span> is a separator; what is "
    "<span class='uncounted'>struck through</span> does not count as a label. Hover for the position.</p>"
)


def _section(inspection: Inspection) -> str:
    facts = "".join(f"<dt>{html.escape(name)}<dd>{html.escape(value)}" for name, value in inspection.facts.items())
    spans = "".join(map(_span, inspection.segments))
    widths = "".join(
        f"<span style='flex:{piece.end - piece.begin};background:{_colour(piece)}'></span>"
        for piece in inspection.segments
    )
    title = html.escape(inspection.title)
    return f"<h2>{title}</h2>\n<dl>{facts}</dl>\n<div class='map'>{widths}</div>\n<pre>{spans}</pre>"


def _colour(piece: Segment) -> str:
    if piece.kind == "padding":
        return "#ffffff"
    return "#333333" if piece.kind == "separator" else _COLOURS[piece.document % len(_COLOURS)]


def _span(piece: Segment) -> str:
    classes = f"{piece.kind}{'' if piece.counts else ' uncounted'}"
    colour = "" if piece.kind == "padding" else f" style='background:{_COLOURS[piece.document % len(_COLOURS)]}'"
    text = f"{piece.end - piece.begin:,} tokens of padding" if piece.kind == "padding" else html.escape(piece.text)
    where = html.escape(_heading(piece).removeprefix("-- "))
    return f"<span class='{classes}'{colour} title='{where}'>{text}</span>"
