"""A picture a claim, from the results alone: the grid of needles before and after, and each pair's curves and leads.

Bands and bars are the 95 % intervals of the table (Student's t over seeds); a dot is a seed. Leads are paired: arm less
the other with the same documents, chats and prompts.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _arms import Claim, Experiment
from _results import lower_is_better, mean_grid, of_arm
from _table import by_seed, interval, leads
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_ultralong.evaluation.report.heatmap import heatmap_png
from megatron_ultralong.evaluation.report.scale import COLORS, GRID, INK, MUTED, length_label, short_label
from megatron_ultralong.files import atomic_file

Results = Sequence[Mapping[str, Any]]
HEATMAP = "heatmap.png"


def draw_pictures(experiment: Experiment, results: Results, folder: Path) -> list[Path]:
    """Write heatmap.png, and ablations_LETTER.png for the claims of one letter, of one arm against another.

    Returns:
        What was written; a claim whose arms have no seed in common has no picture.
    """
    drawn = dict[str, bytes | None]()
    for claim in experiment.claims:
        if not claim.against:
            drawn[HEATMAP] = drawn.get(HEATMAP) or _heatmap(experiment, claim, results)
        elif (name := f"ablations_{claim.name[0]}.png") not in drawn:
            pair = (claim.name[0], claim.arm, claim.against)
            alike = [c for c in experiment.claims if (c.name[0], c.arm, c.against) == pair]
            drawn[name] = _claims(experiment, alike, results)
    written = []
    for name, picture in drawn.items():
        if picture:
            with atomic_file(folder / name) as temporary:
                temporary.write_bytes(picture)
            written.append(folder / name)
    return written


def _heatmap(experiment: Experiment, claim: Claim, results: Results) -> bytes | None:
    """The base and the claim's arm on the grid of its first scale, each the mean of its seeds."""
    scale = claim.scales[0]
    target, context = experiment.scales[scale].target, experiment.context
    grids, seeds = dict[str, list[dict[str, Any]]](), list[int]()
    for arm, label in (("base", "the base"), (claim.arm, f"after one step to {length_label(target)} tokens")):
        if theirs := of_arm(results, scale, arm):
            grids[label] = mean_grid([result["needles"] for result in theirs])
            seeds.append(len(theirs))
    if len(grids) < 2:
        return None
    headline = f"{target // context}x in one step: needles found by length and depth"
    before, after = (f"{statistics.fmean(row['score'] for row in grid):.1f} %" for grid in grids.values())
    words = (
        f"{len({row['depth'] for row in grids['the base']})} depths x "
        f"{len({row['length'] for row in grids['the base']})} lengths: {before} of needles found (seeds: {seeds[0]}), "
        f"then {after} (seeds: {seeds[1]}). Dashed: the base's {context} tokens"
    )
    return heatmap_png(grids, dict(zip(grids, (context, target), strict=True)), headline, words)


def _claims(experiment: Experiment, claims: Sequence[Claim], results: Results) -> bytes | None:
    """Of a pair of arms: needles by length and loss by position at the longest scale, then leads, a panel a measure."""
    claim, measured = claims[0], [(each, measure) for each in claims for measure in each.measures]
    scales = [scale for scale in claim.scales if by_seed(results, scale, claim.arm, claim.against)]
    if not scales:
        return None
    longest = max(scales, key=lambda scale: experiment.scales[scale].target)
    columns = 2 + len(measured)
    figure = Figure(figsize=(3.1 * columns, 3.4), dpi=130, facecolor="white", layout="constrained")
    panels = figure.subplots(1, columns)
    _needles(panels[0], longest, dict.fromkeys(("base", claim.arm, claim.against)), results)
    _losses(panels[1], longest, claim, experiment.scales[longest].target, results)
    for panel, (each, measure) in zip(panels[2:], measured, strict=True):
        _leads(panel, each, measure, results)
    figure.suptitle(claim.name, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _needles(axes: Axes, scale: str, arms: Iterable[str], results: Results) -> None:
    """Share found by length, mean of depths; a line an arm."""
    for place, arm in enumerate(arms):
        seeds = [
            {int(length): statistics.fmean(map(float, scores.split())) for length, scores in result["needles"].items()}
            for result in of_arm(results, scale, arm)
        ]
        _line(axes, seeds, COLORS[place], arm)
    axes.set_ylim(-3, 103)
    _finish(axes, f"{scale}: needles found, %", "length of prompt and answer in tokens")
    axes.legend(fontsize=7.5, frameon=False, loc="best")


def _losses(axes: Axes, scale: str, claim: Claim, target: int, results: Results) -> None:
    """How much less the claim's arm loses than the other, by position in held-out text of twice the target."""
    seeds = [
        {end: math.log(other[span] / own[span]) for span in own if (end := _end(span, 2 * target))}
        for own, other in (
            (arm["perplexity"], against["perplexity"])
            for arm, against in by_seed(results, scale, claim.arm, claim.against)
        )
    ]
    _line(axes, seeds, COLORS[1], claim.arm)
    axes.axhline(0, color=COLORS[2], linewidth=1.2)
    axes.axvline(target, color=INK, linewidth=1, linestyle=(0, (4, 2.5)))
    axes.set_xscale("log", base=2)
    _finish(axes, f"{scale}: nats a token less than {claim.against}", "position to (dashed: the target)")
    axes.set_xticks(ticks := sorted(seeds[0])[1::2], [short_label(tick) for tick in ticks])
    axes.minorticks_off()


def _end(span: str, length: int) -> int | None:
    """The last position of "LENGTH FROM-TO" of this length."""
    found, _, positions = span.partition(" ")
    return int(positions.partition("-")[2]) if int(found) == length else None


def _line(axes: Axes, seeds: Sequence[Mapping[int, float]], color: str, label: str) -> None:
    """Their mean with its interval."""
    if not seeds:
        return
    places = sorted(seeds[0])
    found = [interval([seed[place] for seed in seeds]) for place in places]
    axes.plot(places, [each.mean for each in found], color=color, label=label, linewidth=1.6, marker=".")
    if len(seeds) > 1:
        axes.fill_between(places, [e.low for e in found], [e.high for e in found], color=color, alpha=0.13, linewidth=0)


def _leads(axes: Axes, claim: Claim, measure: str, results: Results) -> None:
    """The claim's arm over the other, and over those beside it: a row for each of its scales, a dot a seed."""
    rows = [
        (f"{scale} {other}", values, other)
        for scale in claim.scales for other in (claim.against, *claim.beside)
        if len(values := leads(results, scale, claim.arm, other, measure)) > 1
    ]  # fmt: skip
    for place, (_, values, other) in enumerate(rows):
        found, color = interval(values), COLORS[1] if other == claim.against else MUTED
        axes.plot([found.low, found.high], [place, place], color=color, linewidth=2.2, solid_capstyle="round")
        axes.plot(values, [place] * len(values), ".", color=color, markersize=4, alpha=0.6)
        axes.plot([found.mean], [place], "o", color=color, markersize=6)
    axes.axvline(claim.above, color=INK, linewidth=1, linestyle=(0, (4, 2.5)))
    axes.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    _finish(
        axes, f"lead in {measure}" + (", nats" if lower_is_better(measure) else ", points"), "dashed: what is claimed"
    )
    axes.set_yticks(range(len(rows)), [f"over {name}" for name, _, _ in rows])


def _finish(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=MUTED)
    axes.set_xlabel(below, color=MUTED, fontsize=8.5)
    axes.tick_params(labelsize=8, labelcolor=MUTED, color=GRID)
    axes.grid(color=GRID, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
