"""A rehearsal as one HTML page: the timeline of memory, drawn, and the same tables. Self-contained; no script."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence

from megatron_ultralong.rehearsal.differing import JobRehearsal
from megatron_ultralong.rehearsal.ledger import KEPT, STANDING, WORKING
from megatron_ultralong.rehearsal.record import columns, cost, moment, sections
from megatron_ultralong.rehearsal.rehearse import Rehearsal

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 300, 48, 10, 22
_STATES = ((WORKING, 0, "#d9822b"), (KEPT, 1, "#3b7dd8"), (STANDING, 2, "#5c6b7a"))
_WAYS = {"forward": "#e8f1fb", "backward": "#fdf0e3", "forward again": "#f3e8fb", "": "#eeeeee"}
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:0 auto;padding:1rem;color:#1d2733;background:#fff}
h1{font-size:1.4rem;margin:.2rem 0;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}
svg{width:100%;height:auto;display:block}figure{margin:0}
figcaption,.note{color:#55606c;font-size:.85rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;width:100%}
th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid #e4e8ec;white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal}
.key span{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em;border-radius:2px;vertical-align:-1px}
.big{font-size:1.6rem;font-weight:600}
@media(max-width:30rem){table{font-size:.8rem}th,td{padding:.2rem .25rem}svg text{font-size:19px}}
"""


def page(job: JobRehearsal, title: str, memory: int = 0) -> str:
    """The page.

    Args:
        job: what was rehearsed.
        title: its heading.
        memory: bytes of a device, drawn as a line; 0: unknown.
    """
    worst = job.worst
    head = f"{title}: rank {worst.rank} of {worst.world_size} needs {job.needed(worst) / 1e9:.1f} GB"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p><span class="big">{job.needed(worst) / 1e9:.1f} GB</span> on rank {worst.rank} of {worst.world_size} '
        f"({html.escape(job.names[worst.rank])}), the most that any rank needs: {html.escape(moment(worst))}.</p>",
        "<h2>Memory over one step</h2>",
        timeline(worst, memory),
        *(f"<h2>{html.escape(each.title)}</h2>{_rows(each.header, each.rows)}" for each in sections(job)),
        f'<p class="note">{html.escape(cost(job))}</p>',
    ]
    viewport = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{viewport}<title>{html.escape(head)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def timeline(found: Rehearsal, memory: int = 0) -> str:
    """Memory over a step as inline SVG: what stands, what is kept, what is at work, over allocations in order."""
    points = columns(found.timeline)
    top = max(found.peak.bytes, memory) * 1.06 or 1.0
    width, height = _WIDTH - _LEFT, _HEIGHT - _BOTTOM - _TOP

    def x(place: float) -> float:
        return _LEFT + width * place / max(len(points), 1)

    def y(size: float) -> float:
        return _TOP + height * (1 - size / top)

    drawn = [_background(points, x), *_grid(top, y)]
    for _, series, colour in _STATES:
        heights = [(point[0], point[1] + point[2], point[2])[series] for point in points]
        path = " ".join(f"L{x(i):.1f},{y(h):.1f} L{x(i + 1):.1f},{y(h):.1f}" for i, h in enumerate(heights))
        drawn.append(f'<path d="M{_LEFT},{y(0):.1f} {path} L{x(len(points)):.1f},{y(0):.1f} Z" fill="{colour}"/>')
    if memory:
        drawn.append(_line(y(memory), "#b3261e", f"{memory / 1e9:.0f} GB, the device"))
    highest = max(range(len(points)), key=lambda i: points[i][0], default=0)
    anchor = "end" if x(highest) > _WIDTH / 2 else "start"
    drawn.append(
        f'<circle cx="{x(highest + 0.5):.1f}" cy="{y(found.peak.bytes):.1f}" r="4" fill="#b3261e"/>'
        f'<text x="{x(highest + 0.5) + (-8 if anchor == "end" else 8):.1f}" y="{y(found.peak.bytes) - 5:.1f}" '
        f'text-anchor="{anchor}" font-weight="600">{found.peak.bytes / 1e9:.1f} GB</text>'
    )
    label = f"Memory of rank {found.rank} over one step; the peak is {found.peak.bytes / 1e9:.1f} GB, {moment(found)}"
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}" font-size="12" '
        f'font-family="system-ui,sans-serif" fill="#1d2733">{"".join(drawn)}</svg>'
    )
    return f"<figure>{svg}<figcaption>{_key()}</figcaption></figure>"


def _key() -> str:
    states = ((STANDING, "stays between steps"), (KEPT, "kept for backward"), (WORKING, "at work"))
    colours = {state: colour for state, _, colour in _STATES}
    items = [
        f'<span style="background:{colours[state]}"></span>{text.replace(" ", "&nbsp;")}' for state, text in states
    ]
    items += [
        f'<span style="background:{_WAYS[way]};outline:1px solid #bbb"></span>{way.replace(" ", "&nbsp;")}'
        for way in _WAYS
        if way
    ]
    return f'<div class="key">{" ".join(items)}</div>From left to right the allocations and releases of one step.'


def _background(points: Sequence[tuple[int, int, int, str]], place: Callable[[float], float]) -> str:
    drawn, start = [], 0
    for i in range(1, len(points) + 1):
        if i == len(points) or points[i][3] != points[start][3]:
            drawn.append(
                f'<rect x="{place(start):.1f}" y="{_TOP}" width="{place(i) - place(start):.1f}" '
                f'height="{_HEIGHT - _BOTTOM - _TOP}" fill="{_WAYS[points[start][3]]}"/>'
            )
            start = i
    return "".join(drawn)


def _grid(top: float, height: Callable[[float], float]) -> Iterable[str]:
    unit = next(10.0**p * m for p in range(3, 15) for m in (1, 2, 5) if top / (10.0**p * m) <= 6)
    for n in range(int(top / unit) + 1):
        size = n * unit
        text = f"{size / 1e9:g}"
        yield (
            f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{height(size):.1f}" y2="{height(size):.1f}" stroke="#cfd6dd"/>'
            f'<text x="{_LEFT - 6}" y="{height(size) + 4:.1f}" text-anchor="end">{text}</text>'
        )
    yield f'<text x="{_LEFT - 6}" y="12" text-anchor="end">GB</text>'


def _line(y: float, colour: str, text: str) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-dasharray="6 4"/>'
        f'<text x="{_LEFT + 6}" y="{y - 5:.1f}" fill="{colour}">{text}</text>'
    )


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="wide"><table>{row(header, "th")}{"".join(row(cells, "td") for cells in rows)}</table></div>'
