"""What tools/gpu_check.py found, kept as JSON and shown: tables, a section of docs/verification.md, a profile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from _gpu_machine import ROOT
from _gpu_tables import tables
from rich import box
from rich.console import Console
from rich.table import Table

from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_file, disk_errors_named, read_json, write_json
from megatron_ultralong.planning.hardware_profile import (
    PROFILES,
    AttentionRate,
    CopyRate,
    HardwareProfile,
    MatmulRate,
    Source,
    like_device,
)

RESULTS = "results.json"
_DOCS = ROOT / "docs" / "verification.md"
_PARTS = ("tests", "measure", "longest")


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
    for title, table in tables(results):
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
                profile.write(PROFILES / f"{re.sub('[^a-z0-9]+', '_', profile.name.lower()).strip('_')}.json")


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
    for title, (names, *rows) in tables(results):
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
    here = Source("measured", "tools/gpu_check.py")
    return HardwareProfile(
        name=machine["name"],
        precision="bf16",
        memory=machine["memory"],
        matmul=(MatmulRate(top["matmul_size"], top["matmul_flops"]),),
        copy=(CopyRate(2 * top["copy_bytes"], top["copy_bytes_per_second"]),),
        attention=rates,
        commit=measure["commit"],
        date=measure["date"],
        sources=dict.fromkeys(("memory", "matmul", "copy", "attention"), here),
        like=like_device(machine["name"], machine["memory"]),
    )


def _both(row: dict[str, Any]) -> float:
    return float(row["forward_seconds"] + row["backward_seconds"])
