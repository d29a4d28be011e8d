"""The tables of tools/gpu_check.py's report: which, and how a number of results.json is written in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from megatron_ultralong.planning.memory import StepMemory

Column = tuple[str, Callable[[dict[str, Any]], str]]


def _count(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{row[key]:,}" if key in row else ""


def _text(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: str(row.get(key, ""))


def _scaled(key: str, unit: float, digits: int = 1) -> Callable[[dict[str, Any]], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key] / unit:,.{digits}f}"


def _percent(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "" if row.get(key) is None else f"{100 * row[key]:.1f} %"


def _part(name: str) -> Callable[[dict[str, Any]], str]:
    """Of a step's memory: measured and planned, GB."""
    return lambda row: (
        f"{row['bytes'][name] / 1e9:,.1f}, {row['bytes_planned'][name] / 1e9:,.1f}" if "bytes" in row else ""
    )


def _memory(row: dict[str, Any]) -> str:
    """Measured and planned, GB, in all; the parts are in results.json."""
    found, planned = row.get("bytes"), row.get("bytes_planned")
    if found is None or planned is None:
        return ""
    if isinstance(found, dict):
        found, planned = found["total"], planned["total"]
    return f"{found / 1e9:,.1f}, planned {planned / 1e9:,.1f}"


_TABLES: list[tuple[str, str, list[Column]]] = [
    (
        "attention",
        "A causal block by kernel, TFLOPS",
        [
            ("kernel", _text("kernel")),
            ("tokens", _count("tokens")),
            ("forward", _scaled("forward_flops", 1e12)),
            ("backward", _scaled("backward_flops", 1e12)),
        ],
    ),
    (
        "folding",
        "What a ring adds to a block, as a share of the block's time",
        [
            ("tokens", _count("tokens")),
            ("fold and copy, of forward", _percent("forward_share")),
            ("add and copy, of backward", _percent("backward_share")),
        ],
    ),
    (
        "ring",
        "One rank of a simulated ring, and its rate as a share of the plain kernel's on a block of that length",
        [
            ("tokens a rank", _count("tokens_a_rank")),
            ("ranks", _count("ranks")),
            ("forward, s", _scaled("forward_seconds", 1, 3)),
            ("of plain", _percent("forward_of_plain")),
            ("backward, s", _scaled("backward_seconds", 1, 3)),
            ("of plain ", _percent("backward_of_plain")),
            ("both", _percent("of_plain")),
        ],
    ),
    (
        "loss",
        "Head and loss in chunks, forward and backward",
        [
            ("positions", _count("positions")),
            ("s", _scaled("seconds", 1, 3)),
            ("of the product", _percent("of_matmul")),
            ("GB", _memory),
        ],
    ),
    (
        "layer",
        "A layer, forward and backward, nothing recomputed",
        [
            ("tokens", _count("tokens")),
            ("s", _scaled("seconds", 1, 3)),
            ("TFLOPS", _scaled("flops", 1e12)),
            ("of the product", _percent("of_matmul")),
        ],
    ),
    (
        "steps",
        "A training step",
        [
            ("layers", _count("layers")),
            ("shapes of one of TP", _count("tensor")),
            ("tokens", _count("tokens")),
            ("memory option", _text("memory")),
            ("s", _scaled("seconds", 1, 2)),
            ("tokens/s", _scaled("tokens_per_second", 1, 0)),
            ("MFU", _percent("mfu")),
            ("of the product", _percent("of_matmul")),
            ("GB", _memory),
        ],
    ),
    (
        "steps",
        "Its memory by part, GB measured and planned",
        [
            ("layers", _count("layers")),
            ("TP", _count("tensor")),
            ("tokens", _count("tokens")),
            *((name, _part(name)) for name in (field.name for field in dataclasses.fields(StepMemory))),
        ],
    ),
    (
        "longest",
        "The longest sequence under each memory option, in short documents",
        [
            ("memory option", _text("memory")),
            ("layers", _count("layers")),
            ("tokens", _count("tokens")),
            ("bound by", _text("bound")),
        ],
    ),
]


def tables(results: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Titles and rows, the first of which are the columns' names; what was left out says why in a last column."""
    found = {
        key: rows for name in ("measure", "longest") for key, rows in results.get(name, {"found": {}})["found"].items()
    }
    made = []
    for key, title, columns in _TABLES:
        rows = found.get(key) or []
        left_out = any("left_out" in row for row in rows)
        names = [name.strip() for name, _ in columns] + ["left out"] * left_out
        lines = [[show(row) for _, show in columns] + [row.get("left_out", "")] * left_out for row in rows]
        if rows:
            made.append((title, [names, *lines]))
    return made
