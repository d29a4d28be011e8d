"""What tools/gpu_check.py found, kept as JSON and shown: tables, a section of docs/verification.md, a profile."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _gpu_machine import ROOT
from rich import box
from rich.console import Console
from rich.table import Table

from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_file, disk_errors_named, read_json, write_json
from megatron_ultralong.planning.hardware_profile import AttentionRate, HardwareProfile

RESULTS = "results.json"
_DOCS = ROOT / "docs" / "verification.md"
_PROFILES = ROOT / "megatron_ultralong" / "planning" / "profiles"
_PARTS = ("tests", "measure", "longest")

Column = tuple[str, Callable[[dict[str, Any]], str]]


def _count(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{row[key]:,}" if key in row else ""


def _text(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: str(row.get(key, ""))


def _scaled(key: str, unit: float, digits: int = 1) -> Callable[[dict[str, Any]], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key] / unit:,.{digits}f}"


def _percent(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "" if row.get(key) is None else f"{100 * row[key]:.1f} %"


def _memory(row: dict[str, Any]) -> str:
    """Measured and planned, GB, in all; the parts are in results.json."""
    found, planned = row.get("bytes"), row.get("bytes_planned")
    if found is None or planned is None:
        return ""
    if isinstance(found, dict):
        found, planned = found["total"], planned["total"]
    return f"{found / 1e9:,.1f}, planned {planned / 1e9:,.1f}"


_TABLES: dict[str, tuple[str, list[Column]]] = {
    "attention": (
        "A causal block by kernel, TFLOPS",
        [
            ("kernel", _text("kernel")),
            ("tokens", _count("tokens")),
            ("forward", _scaled("forward_flops", 1e12)),
            ("backward", _scaled("backward_flops", 1e12)),
        ],
    ),
    "folding": (
        "What a ring adds to a block, as a share of the block's time",
        [
            ("tokens", _count("tokens")),
            ("fold and copy, of forward", _percent("forward_share")),
            ("add and copy, of backward", _percent("backward_share")),
        ],
    ),
    "ring": (
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
    "loss": (
        "Head and loss in chunks, forward and backward",
        [
            ("positions", _count("positions")),
            ("s", _scaled("seconds", 1, 3)),
            ("of the product", _percent("of_matmul")),
            ("GB", _memory),
        ],
    ),
    "layer": (
        "A layer, forward and backward, nothing recomputed",
        [
            ("tokens", _count("tokens")),
            ("s", _scaled("seconds", 1, 3)),
            ("TFLOPS", _scaled("flops", 1e12)),
            ("of the product", _percent("of_matmul")),
        ],
    ),
    "steps": (
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
    "longest": (
        "The longest sequence under each memory option, in short documents",
        [
            ("memory option", _text("memory")),
            ("layers", _count("layers")),
            ("tokens", _count("tokens")),
            ("bound by", _text("bound")),
        ],
    ),
}


def add(output: Path, name: str, found: dict[str, Any]) -> None:
    """Put a part's results into results.json; those of another machine or commit leave it."""
    path = output / RESULTS
    known = _read(output) if path.exists() else {}
    alike = {
        key: value
        for key, value in known.items()
        if all(value[field] == found[field] for field in ("commit", "machine"))
    }
    with disk_errors_named(output):
        write_json(path, {**alike, name: found})


def _read(output: Path) -> dict[str, Any]:
    value = read_json(output / RESULTS, "the results", "run the other parts of tools/gpu_check.py first")
    if not isinstance(value, dict) or not value:
        raise UserError(f"{output / RESULTS}: no results are in it; run --part tests or --part measure.")
    return value


def failures(output: Path) -> list[Any]:
    """Tests that failed."""
    tests = _read(output).get("tests")
    return tests["found"]["failed"] if tests is not None else []


def report(output: Path, write_docs: bool) -> None:
    """Print the results as tables, write verification.md and profile.json beside them, and on request to the docs.

    Raises:
        UserError: there are no results.
    """
    results = _read(output)
    console = Console(width=max(100, Console().width))
    for title, table in _tables(results):
        shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in table[0]:
            shown.add_column(name)
        for row in table[1:]:
            shown.add_row(*row)
        console.print(shown)
    for line in _sentences(results):
        console.print(line)
    section, profile = markdown(results), _profile(results)
    with disk_errors_named(output):
        with atomic_file(output / "verification.md") as temporary:
            temporary.write_text(section, encoding="utf-8")
        if profile is not None:
            profile.write(output / "profile.json")
    if write_docs:
        with disk_errors_named(_DOCS):
            page = with_section(_DOCS.read_text(encoding="utf-8"), section)
            with atomic_file(_DOCS) as temporary:
                temporary.write_text(page, encoding="utf-8")
            if profile is not None:
                profile.write(_PROFILES / f"{re.sub('[^a-z0-9]+', '_', profile.name.lower()).strip('_')}.json")


def _tables(results: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Titles and rows, the first of which are the columns' names; what was left out says why in a last column."""
    found = {
        key: rows for name in ("measure", "longest") for key, rows in results.get(name, {"found": {}})["found"].items()
    }
    tables = []
    for key, (title, columns) in _TABLES.items():
        rows = found.get(key) or []
        left_out = any("left_out" in row for row in rows)
        names = [name.strip() for name, _ in columns] + ["left out"] * left_out
        lines = [[show(row) for _, show in columns] + [row.get("left_out", "")] * left_out for row in rows]
        if rows:
            tables.append((title, [names, *lines]))
    return tables


def _sentences(results: dict[str, Any]) -> list[str]:
    """The ceilings, and what came of the tests."""
    said = []
    if (measure := results.get("measure")) is not None:
        top = measure["found"]["ceilings"]
        said.append(
            f"Ceilings of the same run: a product of {top['matmul_size']:,} cubed in bf16 "
            f"{top['matmul_flops'] / 1e12:,.1f} TFLOPS, a copy {top['copy_bytes_per_second'] / 1e9:,.1f} GB/s read and "
            f"written. {measure['seconds']:,.0f} s in all."
        )
    if (tests := results.get("tests")) is not None:
        found = tests["found"]
        said.append(
            f"Tests: {found['passed']} passed, {len(found['failed'])} failed, {len(found['skipped'])} skipped, "
            f"{tests['seconds']:,.0f} s."
        )
        said += [f"failed: {name}: {why}" for name, why in found["failed"]]
        reasons = sorted({why for _, why in found["skipped"]})
        said += [f"skipped: {why}" for why in reasons]
    said += [f"Not run: tools/gpu_check.py --part {name}." for name in _PARTS if name not in results]
    return said


def markdown(results: dict[str, Any]) -> str:
    """The section for docs/verification.md."""
    any_part = next(iter(results.values()))
    machine, commit = any_part["machine"], any_part["commit"] or "an unknown commit"
    dates = sorted({part["date"] for part in results.values()})
    versions = ", ".join(
        f"{name} {machine[name]}"
        for name in ("torch", "cuda", "cudnn", "nccl", "triton", "megatron-core")
        if machine.get(name)
    )
    lines = [
        f"## {_heading(machine)}",
        f"`python tools/gpu_check.py`, commit {commit}, {' and '.join(dates)}, {machine['host_cores']} cores, "
        f"Python {machine['python']}, {versions}.",
        "",
        *(f"- {sentence}" for sentence in _sentences(results)),
    ]
    for title, (names, *rows) in _tables(results):
        lines += ["", f"{title}:", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _heading(machine: dict[str, Any]) -> str:
    return f"On one {machine['name']}"


def with_section(page: str, section: str) -> str:
    """The page with the section at its end, in the place of an earlier one of the same heading."""
    heading = re.escape(section.split("\n", 1)[0])
    kept = re.sub(rf"^{heading}\n(?:(?!## ).*\n?)*", "", page, flags=re.MULTILINE)
    return f"{kept.rstrip()}\n\n{section}"


def _profile(results: dict[str, Any]) -> HardwareProfile | None:
    """What planning can use; None without measurements of a GPU."""
    measure = results.get("measure")
    if measure is None or not measure["machine"]["memory"]:
        return None
    fastest: dict[int, dict[str, Any]] = {}
    for row in measure["found"]["attention"]:
        if "backward_seconds" in row:
            seconds, best = _both(row), fastest.get(row["tokens"])
            if best is None or seconds < _both(best):
                fastest[row["tokens"]] = row
    rates = tuple(
        AttentionRate(tokens, row["forward_flops"], row["backward_flops"]) for tokens, row in sorted(fastest.items())
    )
    top, machine = measure["found"]["ceilings"], measure["machine"]
    return HardwareProfile(
        name=machine["name"],
        memory=machine["memory"],
        matmul=top["matmul_flops"],
        copy=top["copy_bytes_per_second"],
        attention=rates,
        commit=measure["commit"],
        date=measure["date"],
    )


def _both(row: dict[str, Any]) -> float:
    return float(row["forward_seconds"] + row["backward_seconds"])
