"""The memory plan of a layout beside its rehearsal."""

from __future__ import annotations

import dataclasses

from megatron_ultralong.planning.memory import PlannedMemory, StepMemory, predict
from megatron_ultralong.rehearsal.rehearse import GPU, Rehearsal, rehearse
from tests.planning.layouts import Layout

PARTS = [field.name for field in dataclasses.fields(StepMemory)]


def both(layout: Layout, gpu: bool = True) -> tuple[Rehearsal, PlannedMemory]:
    """As on a GPU, or on a CPU."""
    found = rehearse(
        layout.config,
        layout.model,
        layout.processes,
        layout.rank,
        capability=GPU if gpu else None,
        document=layout.document,
    )
    return found, predict(layout.config, layout.model, layout.processes, found.coordinates.pipeline, gpu)


def errors(found: StepMemory, planned: StepMemory) -> dict[str, float]:
    """Of each part, and of the total, relative to what was found."""
    values = {name: (getattr(found, name), getattr(planned, name)) for name in [*PARTS, "total"]}
    return {name: b / a - 1 if a else float(b > 0) for name, (a, b) in values.items()}
