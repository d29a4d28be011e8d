"""A rehearsal as JSON, and the rows that the table and the page show."""

from __future__ import annotations

import collections
import dataclasses
import resource
from collections.abc import Sequence
from typing import Any

from megatron_ultralong.rehearsal.differing import JobRehearsal
from megatron_ultralong.rehearsal.ledger import KEPT, STANDING, WORKING, Timeline
from megatron_ultralong.rehearsal.rehearse import Rehearsal

FORMAT = 1
COLUMNS = 720
"""Points of a timeline that are written; the highest of what falls on each."""
ASSUMPTIONS = (
    "every label counts",
    "a sample is one document unless --document says another length",
    "what the driver, communicators, kernels' own workspaces and an allocator's fragments take is not in it",
)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Calls of one collective over one group.

    Attributes:
        kind: which.
        group: what the group is called, or its ranks.
        size: ranks in it.
        count: calls.
        bytes: of all their buffers, whole.
        largest: of one.
    """

    kind: str
    group: str
    size: int
    count: int
    bytes: int
    largest: int


def traffic(found: Rehearsal) -> list[Traffic]:
    """What a rank sends and receives in a step, most bytes first."""
    rows: dict[tuple[str, tuple[int, ...]], Traffic] = {}
    for message, count in found.messages.items():
        key = message.kind, message.group
        name = found.groups.get(message.group, "ranks " + " ".join(map(str, message.group[:8])))
        row = rows.get(key, Traffic(message.kind, name, len(message.group), 0, 0, 0))
        rows[key] = dataclasses.replace(
            row,
            count=row.count + count,
            bytes=row.bytes + count * message.bytes,
            largest=max(row.largest, message.bytes),
        )
    return sorted(rows.values(), key=lambda row: (-row.bytes, -row.count))


def moment(found: Rehearsal) -> str:
    """Where the peak is, in words."""
    place = found.peak.place
    if place is None or not place.way:
        return place.part if place is not None and place.part else "between microbatches"
    where = place.module or place.part
    return f"{place.way}, {where}, microbatch {place.microbatch + 1} of {found.microbatches[0]}"


def columns(timeline: Timeline, most: int = COLUMNS) -> list[tuple[int, int, int, str]]:
    """At most so many points of a timeline, each the highest of its share: bytes in all, kept, standing; the way."""
    ways = [mark[1] for mark in timeline.marks]
    starts: Sequence[int] = [mark[0] for mark in timeline.marks]
    events, rows, mark = timeline.bytes, [], 0
    for column in range(min(most, len(events))):
        first, last = (len(events) * place // min(most, len(events)) for place in (column, column + 1))
        highest = max(range(first, last), key=lambda at: events[at][0])
        while mark + 1 < len(starts) and starts[mark + 1] <= highest:
            mark += 1
        rows.append((*events[highest], ways[mark]))
    return rows


def one_rank(found: Rehearsal, name: str) -> dict[str, Any]:
    """A rank's JSON object."""
    return {
        "rank": found.rank,
        "stands_for": name,
        "coordinates": dataclasses.asdict(found.coordinates),
        "peak_bytes": found.peak.bytes,
        "peak_parts": [{"state": state, "part": part, "bytes": n} for (state, part), n in found.peak.parts.items()],
        "peak_moment": moment(found),
        "peak_place": dataclasses.asdict(found.peak.place) if found.peak.place else None,
        "standing_bytes": found.standing,
        "host_bytes": found.host,
        "dry_run_memory": dataclasses.asdict(found.memory),
        "microbatches": found.microbatches[0],
        "microbatches_rehearsed": found.microbatches[1],
        "operators": {part: dict(counts.most_common()) for part, counts in found.operators.items()},
        "collectives": [dataclasses.asdict(row) for row in traffic(found)],
        "matmul_flops": dict(found.products),
        "attention_flops": dict(found.attention),
        "synchronisations": dict(found.synchronisations),
        "timeline": [
            {"bytes": total, "kept": kept, "standing": standing, "way": way}
            for total, kept, standing, way in columns(found.timeline)
        ],
        "seconds": found.seconds,
    }


def as_json(job: JobRehearsal) -> dict[str, Any]:
    """The whole record; bytes are bytes, FLOPs two a multiply-add of matrix products alone."""
    return {
        "format": FORMAT,
        "world_size": job.worst.world_size,
        "path": "gpu" if job.worst.gpu else "cpu",
        "assumptions": list(ASSUMPTIONS),
        "layers": job.layers[0],
        "layers_rehearsed": job.layers[1],
        "worst_rank": job.worst.rank,
        "ranks": [
            {
                **one_rank(found, job.names[found.rank]),
                "left_out_bytes": job.left_out[found.rank].device,
                "left_out_host_bytes": job.left_out[found.rank].host,
            }
            for found in job.found
        ],
        "seconds": sum(found.seconds for found in job.found),
        "own_peak_bytes": own_memory(),
    }


def own_memory() -> int:
    """Bytes that this process took at most: the tool's own cost."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclasses.dataclass(frozen=True)
class Section:
    """A table; the first column is text, the others are numbers."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def sections(job: JobRehearsal) -> list[Section]:
    """All ranks side by side, then the worst by memory, messages, operators and waits."""
    worst, gb = job.worst, "GB"
    return [
        Section(
            "Ranks that differ, GB (10^9 bytes)",
            ("stands for", "rank", "peak", STANDING, KEPT, WORKING, "host"),
            [_rank(found, job.names[found.rank]) for found in job.found],
        ),
        Section("Memory at the peak", ("part", "state", gb, "share"), _memory(worst)),
        Section(
            "Messages of a step, by whole buffers: what is reduced or sent, gathered or scattered in all",
            ("kind", "group", "ranks", "calls", gb, "largest, MB"),
            [
                (row.kind, row.group, str(row.size), f"{row.count:,}", _giga(row.bytes), f"{row.largest / 1e6:.2f}")
                for row in traffic(worst)
            ],
        ),
        Section("Operators and matrix products of a step", ("part", "operators", "TFLOP"), _operators(worst)),
        Section(
            "Where the host waits for the device in a step",
            ("function", "times"),
            [(where, str(n)) for where, n in worst.synchronisations.items()],
        ),
    ]


def cost(job: JobRehearsal) -> str:
    """What was assumed, left out, and what the rehearsal itself took."""
    count, taken = job.worst.microbatches
    left_out = f"Of {count} microbatches {taken} were rehearsed; one stands for the rest. " if taken < count else ""
    if job.layers[1] < job.layers[0]:
        others = job.left_out[job.worst.rank]
        left_out += (
            f"Of {job.layers[0]} layers {job.layers[1]} were rehearsed (--layers). The others take "
            f"{_giga(others.device, 2)} GB more on that rank's device and {_giga(others.host, 2)} GB of host memory by "
            "planning/memory.py: the first is in what is needed, neither in tables, and no operator, message or FLOP "
            "of theirs is counted. "
        )
    seconds = sum(found.seconds for found in job.found)
    return (
        f"Assumed: {'; '.join(ASSUMPTIONS)}. {left_out}Rehearsed in {seconds:.1f} s and {_giga(own_memory(), 2)} GB of "
        "this machine's memory."
    )


def _giga(size: int, digits: int = 3) -> str:
    return f"{size / 1e9:.{digits}f}"


def _rank(found: Rehearsal, name: str) -> tuple[str, ...]:
    states: collections.Counter[str] = collections.Counter()
    for (state, _), n in found.peak.parts.items():
        states[state] += n
    sizes = (found.peak.bytes, states[STANDING], states[KEPT], states[WORKING], found.host)
    return name, str(found.rank), *(_giga(size, 2) for size in sizes)


def _memory(found: Rehearsal) -> list[tuple[str, ...]]:
    least = 0.001 * found.peak.bytes
    parts = [(state, part, n) for (state, part), n in found.peak.parts.items() if n >= least]
    return [(part, state, _giga(n), f"{n / found.peak.bytes:.1%}") for state, part, n in parts]


def _operators(found: Rehearsal) -> list[tuple[str, ...]]:
    rows = []
    for part, counts in sorted(found.operators.items(), key=lambda item: -item[1].total()):
        flops = found.products[part] + (found.attention.total() if part == "attention" else 0)
        rows.append((part, f"{counts.total():,}", f"{flops / 1e12:,.1f}" if flops else ""))
    operators = sum(counts.total() for counts in found.operators.values())
    return [*rows, ("in all", f"{operators:,}", f"{(found.products.total() + found.attention.total()) / 1e12:,.1f}")]
