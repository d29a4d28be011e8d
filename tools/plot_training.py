"""Draw what runs recorded: losses of steps and of validations, by tokens of context, and needles found.

    python tools/plot_training.py extend=runs/extend/metrics.jsonl --output curves.png

`tools/evaluate.py compare --metrics` puts the same curves into its report.
"""

from __future__ import annotations

from pathlib import Path

from megatron_ultralong.cli import run


def plot(metrics: tuple[str, ...], /, *, output: Path) -> None:
    """Write a PNG, a row of panels for each run.

    Args:
        metrics: NAME=metrics.jsonl of each.
        output: Picture to write.
    """
    from megatron_ultralong.errors import UserError
    from megatron_ultralong.evaluation.report.curve_picture import curves_png
    from megatron_ultralong.evaluation.report.stage_curves import read_curves
    from megatron_ultralong.files import atomic_file, disk_errors_named

    if not metrics:
        raise UserError("there is no run to draw; give NAME=metrics.jsonl.")
    picture = curves_png(read_curves(metrics))
    with disk_errors_named(output), atomic_file(output) as temporary:
        temporary.write_bytes(picture)


if __name__ == "__main__":
    run(plot)
