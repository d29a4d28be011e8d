"""A rehearsal on the terminal: the ranks side by side, then the worst of them by part."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from megatron_ultralong.rehearsal.differing import JobRehearsal
from megatron_ultralong.rehearsal.record import cost, moment, sections

_WIDTH = 110  # also where the terminal is narrower or a file


def show(job: JobRehearsal, brief: bool = False) -> None:
    """Print everything, or with `brief` what the worst rank needs alone."""
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(_WIDTH, console.width)
    worst = job.worst
    for section in () if brief else sections(job):
        table = Table(title=section.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for place, column in enumerate(section.header):
            table.add_column(column, justify="left" if place == 0 else "right")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    console.print(
        f"Most is needed by rank {worst.rank} of {worst.world_size} ({job.names[worst.rank]}): "
        f"{job.needed(worst) / 1e9:.2f} GB, in {moment(worst)}.",
        markup=False,
    )
    console.print(cost(job), markup=False)
