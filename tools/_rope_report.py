"""What a rope does to each dimension, as a table and a picture: both forms of YaRN and llama3 side by side.

Everything shown is computed from the same `RopeScaling` that trains and exports. Costs a second, most of it for
comparing fp32 angles with exact ones over the last 16,384 positions.
"""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from megatron_ultralong.model.rotary import serving_frequencies
from megatron_ultralong.rope.scaling import RopeScaling, temperature

_INK, _MUTED, _GRID = "#1f2933", "#616e7c", "#e4e7eb"
_STYLES = (
    ("#9aa5b1", "-", 1.6),
    ("#d1573a", "-", 2.6),
    ("#0b6e69", "-", 2.0),
    ("#3b5b92", "-", 1.4),
    ("#8a6d1f", ":", 2.6),
    ("#1f2933", "--", 2.0),
)
_POSITIONS = 16384


def variants(own: RopeScaling, chosen: RopeScaling) -> dict[str, RopeScaling]:
    """The ropes to compare, by name: the model's own, and the four ways to say the same factor.

    Args:
        own: the model's rope now.
        chosen: the rope of the run; its factor, original length and ramp go into each.
    """
    ramp = (chosen.alpha, chosen.beta) if chosen.kind in ("yarn", "llama3") else (1.0, 4.0)
    base = RopeScaling(
        base=own.base,
        factor=chosen.factor,
        original_length=chosen.original_length,
        alpha=ramp[0],
        beta=ramp[1],
        rotary_fraction=own.rotary_fraction,
    )
    ends = f"{ramp[0]:g}..{ramp[1]:g}"
    out = {
        f"own\n{own.kind}": own,
        f"YaRN paper\n{ends}": dataclasses.replace(base, kind="yarn", form="paper"),
        f"YaRN coded\n{ends}": dataclasses.replace(base, kind="yarn", form="coded"),
        "YaRN coded\n1..32": dataclasses.replace(base, kind="yarn", form="coded", alpha=1.0, beta=32.0),
        f"llama3\n{ends}": dataclasses.replace(base, kind="llama3"),
    }
    if chosen != own and chosen.kind not in ("yarn", "llama3"):
        out[f"this run\n{chosen.kind}"] = chosen
    return out


def ratios(rope: RopeScaling, dim: int) -> NDArray[np.float64]:
    """theta' / theta of each dimension: 1 is kept, 1 / s fully scaled; [dim / 2]."""
    return rope.inverse_frequencies(dim) / dataclasses.replace(rope, kind="none").inverse_frequencies(dim)


def treatment(ratio: float, factor: float) -> str:
    """Kept, 1 / s, or how much of the plain frequency a blend leaves."""
    if math.isclose(ratio, 1.0, rel_tol=1e-9):
        return "kept"
    if math.isclose(ratio * factor, 1.0, rel_tol=1e-9):
        return f"1/{factor:g}"
    return f"{ratio:.4f}"


def table(ropes: dict[str, RopeScaling], dim: int, every_row: bool = False) -> Table:
    """Each dimension's wavelength and what becomes of it; runs of rows that say the same are shortened."""
    chosen = list(ropes.values())[1]
    wavelengths = 2 * math.pi / dataclasses.replace(chosen, kind="none").inverse_frequencies(dim)
    columns = [[treatment(r, rope.factor) for r in ratios(rope, dim)] for rope in ropes.values()]
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("i", "wavelength\nin tokens", f"rotations\nin {chosen.original_length:,}", *ropes):
        out.add_column(name, justify="right", no_wrap=True)
    rows = [tuple(column[i] for column in columns) for i in range(dim // 2)]
    skipping = False
    for i, row in enumerate(rows):
        inside = 0 < i < len(rows) - 1 and rows[i - 1] == row == rows[i + 1]
        if inside and not every_row:
            if not skipping:
                out.add_row(*["..."] * (3 + len(ropes)))
            skipping = True
            continue
        skipping = False
        out.add_row(str(i), f"{wavelengths[i]:,.1f}", f"{chosen.original_length / wavelengths[i]:,.3f}", *row)
    return out


def sentences(ropes: dict[str, RopeScaling], chosen: RopeScaling, dim: int) -> list[str]:
    """What the table comes to: factor, where the forms differ most, temperature, and the precision of angles."""
    paper, coded = list(ropes.values())[1:3]
    apart = coded.inverse_frequencies(dim) / paper.inverse_frequencies(dim)
    most = int(np.abs(np.log(apart)).argmax())
    return [
        f"s = {chosen.factor:g}: {chosen.length:,} tokens over {chosen.original_length:,}.",
        f"The two forms of YaRN differ most at i = {most}: theta' is {paper.inverse_frequencies(dim)[most]:.6g} in the "
        f"paper's and {coded.inverse_frequencies(dim)[most]:.6g} in the coded form, a factor of {apart[most]:.4g}.",
        f"0.1 ln s + 1 = {temperature(chosen.factor):.6g}; this rope multiplies cos and sin by "
        f"{chosen.attention_factor:.6g}.",
        f"fp32 angles, as serving stacks form them: the largest |cos32 - cos64| of the last "
        f"{min(_POSITIONS, chosen.length):,} of {chosen.length:,} positions is {angle_error(chosen, dim):.3f}.",
    ]


def angle_error(rope: RopeScaling, dim: int) -> float:
    """The largest difference that fp32 makes to a cosine near the end of the context."""
    positions = np.arange(max(0, rope.length - _POSITIONS), rope.length)
    exact, rounded = rope.inverse_frequencies(dim), serving_frequencies(rope, dim).numpy()
    worst = 0.0
    for i in range(dim // 2):
        angles = positions.astype(np.float32) * rounded[i]
        worst = max(worst, float(np.abs(np.cos(angles.astype(np.float64)) - np.cos(positions * exact[i])).max()))
    return worst


def picture(ropes: dict[str, RopeScaling], dim: int, title: str) -> bytes:
    """A PNG: above, how much of each frequency is left; below, the wavelengths that come of it."""
    figure = Figure(figsize=(9.6, 8.0), dpi=130, facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True)
    chosen = list(ropes.values())[1]
    index = np.arange(dim // 2)
    for (name, rope), (color, line, width) in zip(ropes.items(), _STYLES, strict=False):
        above.plot(index, ratios(rope, dim), line, color=color, lw=width, label=name.replace("\n", ", "))
        below.plot(index, 2 * math.pi / rope.inverse_frequencies(dim), line, color=color, lw=width)
    for tokens, name in ((chosen.original_length, "original"), (chosen.length, "target")):
        below.axhline(tokens, color=_MUTED, lw=0.8, ls="--")
        below.text(0, tokens * 1.25, f"{name} length {tokens:,}", color=_MUTED, fontsize=9)
    _dress(above, "theta' / theta")
    _dress(below, "wavelength in tokens")
    above.set_title(title, loc="left", color=_INK, fontsize=12, fontweight="bold")
    above.legend(frameon=False, fontsize=9, labelcolor=_INK)
    below.set_xlabel("dimension pair i", color=_MUTED)
    figure.tight_layout()
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _dress(axes: Axes, label: str) -> None:
    axes.set_yscale("log")
    axes.set_ylabel(label, color=_MUTED)
    axes.grid(color=_GRID, lw=0.6)
    axes.tick_params(length=0, labelcolor=_MUTED)
    axes.spines[["top", "right"]].set_visible(False)
