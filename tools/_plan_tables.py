"""A plan as tables on a terminal, as JSON, and as a bar chart of memory by part."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from megatron_ultralong.planning.hardware_profile import HardwareProfile
from megatron_ultralong.planning.job import JobPlan
from megatron_ultralong.planning.memory import PlannedMemory
from megatron_ultralong.planning.search.layouts import name_of
from megatron_ultralong.planning.search.ranking import Plan, Ranking

_GB = 1e9


def memory_parts(memory: PlannedMemory) -> dict[str, int]:
    """Bytes that lie beside each other at the highest point of a step; they add up to what is needed."""
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "buffers": memory.buffers,
        "kept for backward": memory.kept,
        "at the highest point": memory.peak - memory.kept,
        "outside tensors": memory.scratch + memory.communication + memory.margin,
    }


def ranking_table(plans: Sequence[Plan], top: int) -> Table:
    """The fastest layouts."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"fastest {min(top, len(plans))} of {len(plans):,} that fit"
    )
    for column in ("layout", "s/step", "tokens/s", "MFU", "GB", "largest in time"):
        table.add_column(column, justify="left" if column in ("layout", "largest in time") else "right")
    for plan in plans[:top]:
        part, seconds = max(plan.time.parts.items(), key=lambda one: one[1])
        table.add_row(
            name_of(plan.config),
            f"{plan.time.total:,.1f}",
            f"{plan.time.tokens_per_second:,.0f}",
            f"{plan.time.mfu:.0%}" if plan.time.mfu else "",
            f"{plan.memory.needed / _GB:,.1f}",
            f"{part} {seconds / plan.time.total:.0%}",
        )
    return table


def reasons_table(ranking: Ranking, most: float) -> Table:
    """Why the other layouts are not among them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="why others do not")
    table.add_column("layouts", justify="right")
    table.add_column("reason")
    for reason, count in ranking.refused.most_common(6):
        table.add_row(f"{count:,}", reason)
    if ranking.too_large:
        least, config = ranking.too_large[0]
        table.add_row(
            f"{len(ranking.too_large):,}",
            f"needs more than {most / _GB:,.1f} GB whatever is recomputed or offloaded; the nearest "
            f"{least / _GB:,.1f} GB: {name_of(config)}",
        )
    return table


def parts_table(plan: Plan, profile: HardwareProfile) -> Table:
    """Memory and time of one plan by part, side by side."""
    name = name_of(plan.config)
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"{name}: stage {plan.stage}, highest at {plan.memory.moment}"
    )
    for column in ("memory", "GB", "time", "s", "share"):
        table.add_column(column, justify="left" if column in ("memory", "time") else "right")
    memory = [(part, f"{size / _GB:,.1f}") for part, size in memory_parts(plan.memory).items() if size]
    memory.append(("in all", f"{plan.memory.needed / _GB:,.1f} of {profile.memory / _GB:,.0f}"))
    if plan.memory.host:
        memory.append(("on the host", f"{plan.memory.host / _GB:,.1f}"))
    times = sorted(plan.time.parts.items(), key=lambda part: -part[1])
    rows = [(part, f"{seconds:,.2f}", f"{seconds / plan.time.total:.1%}") for part, seconds in times]
    rows.append(("in all", f"{plan.time.total:,.2f}", ""))
    for place in range(max(len(memory), len(rows))):
        left = memory[place] if place < len(memory) else ("", "")
        table.add_row(*left, *(rows[place] if place < len(rows) else ("", "", "")))
    return table


def job_table(jobs: dict[str, JobPlan], evaluation: float | None) -> Table:
    """Each stage's hours, checkpoints and expected losses."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="the job")
    columns = ("stage", "tokens", "steps", "hours", "GPU-hours", "checkpoint", "writing", "every", "expected loss")
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, job in jobs.items():
        table.add_row(
            name,
            f"{job.tokens / 1e9:,.2f}B",
            f"{job.steps:,}",
            f"{job.hours:,.2f}",
            f"{job.gpu_hours:,.0f}",
            f"{job.checkpoint_bytes / _GB:,.0f} GB",
            f"{job.write_seconds:,.0f} s",
            f"{job.interval} steps",
            f"{job.lost_seconds / 60:,.0f} min, {job.lost_seconds / (3600 * job.hours):.1%}",
        )
    if evaluation is not None:
        ranks = next(iter(jobs.values())).ranks
        hours = evaluation / 3600
        table.add_row("passkey, 10 x 40", "", "", f"{hours:,.2f}", f"{hours * ranks:,.0f}", "", "", "", "")
    return table


def as_json(plan: Plan) -> dict[str, Any]:
    """One plan."""
    return {
        "layout": name_of(plan.config),
        "parallel": dataclasses.asdict(plan.config.parallel),
        "micro_batch_size": plan.config.train.micro_batch_size,
        "gpus": plan.world_size,
        "memory_bytes": {**memory_parts(plan.memory), "total": plan.memory.needed},
        "host_bytes": plan.memory.host,
        "moment": plan.memory.moment,
        "stage": plan.stage,
        "step_seconds": {**plan.time.parts, "total": plan.time.total},
        "tokens_per_second": plan.time.tokens_per_second,
        "mfu": plan.time.mfu,
    }


def job_json(job: JobPlan) -> dict[str, Any]:
    """One stage."""
    found = {name: getattr(job, name) for name in ("hours", "gpu_hours", "lost_seconds")}
    return {**dataclasses.asdict(job), **found}


def chart(plans: Sequence[Plan], profile: HardwareProfile, path: Path) -> None:
    """Bars of memory by part, a bar a layout, as PNG."""
    from matplotlib.figure import Figure

    colors = ("#0b6e69", "#6fb7a7", "#3b5b92", "#e8926a", "#d1573a", "#c9ccd1", "#7a8590")
    names = [name_of(plan.config) for plan in plans]
    figure = Figure(figsize=(9, 1.8 + 0.4 * len(plans)), dpi=120, layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(plans)
    for number, part in enumerate(memory_parts(plans[0].memory)):
        widths = [memory_parts(plan.memory)[part] / _GB for plan in plans]
        axes.barh(names, widths, left=left, label=part, color=colors[number])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.axvline(profile.memory / _GB, color="#1f2933", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel(f"GB of {profile.memory / _GB:,.0f} on {profile.name}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    figure.legend(fontsize=8, ncols=4, frameon=False, loc="outside lower center")
    figure.savefig(path)


def show(tables: Sequence[Table]) -> None:
    """On the terminal, wide enough for a layout's name."""
    console = Console(width=max(110, Console().width))
    for table in tables:
        table.title_justify = "left"
        console.print(table)
