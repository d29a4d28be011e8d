"""What the terminal shows of a run: a table that is redrawn in place, or a plain line now and then.

The table (rich) is for people who watch; where the output is no terminal (a batch job's log) the same numbers
come as one line every `log.interval` steps. A validation is a line of its own in both, and its losses stay in the
table. What is logged meanwhile appears above the table.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from megatron_ultralong.progress import duration
from megatron_ultralong.training.metrics import StepMetrics, ValidationMetrics

logger = logging.getLogger(__name__)


def is_terminal() -> bool:
    """Whether somebody may be watching stderr."""
    return sys.stderr.isatty()


class _Clock:
    """Time left, from the steps of this process."""

    def __init__(self, first_step: int, last_step: int) -> None:
        self.first_step, self.last_step, self.started = first_step, last_step, time.monotonic()

    def left(self, step: int) -> str:
        done = step - self.first_step + 1
        return duration((time.monotonic() - self.started) / done * (self.last_step - step))


class _Sources:
    """The newest loss of each source: a step may have had labels of some alone."""

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}

    def newest(self, metrics: StepMetrics) -> list[str]:
        """Each source's, in words, this step's included."""
        self.losses |= metrics.loss_by_source
        return [f"{name} {loss:.4f}" for name, loss in self.losses.items()]


class PlainView:
    """One line every `interval` steps, and for the first and the last."""

    def __init__(self, first_step: int, last_step: int, interval: int) -> None:
        self.clock, self.interval, self.sources = _Clock(first_step, last_step), interval, _Sources()

    def record(self, metrics: StepMetrics) -> None:
        """Log the step if its turn has come."""
        by_source = self.sources.newest(metrics)
        if metrics.step % self.interval and metrics.step not in (self.clock.first_step, self.clock.last_step):
            return
        logger.info(
            "step %d of %d: loss %.4f%s, gradient norm %.3f, learning rate %.2e, %s tokens/s (%s a rank), "
            "%.3g TFLOPS a rank%s, %.1f GiB, %s samples read, %s left",
            metrics.step,
            self.clock.last_step,
            metrics.loss,
            f" (newest of each source: {', '.join(by_source)})" if by_source else "",
            metrics.grad_norm,
            metrics.learning_rate,
            f"{metrics.tokens_per_second:,.0f}",
            f"{metrics.tokens_per_second_per_rank:,.0f}",
            metrics.tflops_per_rank,
            "" if metrics.mfu is None else f" (MFU {100 * metrics.mfu:.1f} %)",
            metrics.memory_gib,
            f"{metrics.samples:,}",
            self.clock.left(metrics.step),
        )

    def validated(self, found: ValidationMetrics) -> None:
        """Log it."""
        logger.info("%s", said(found))

    def close(self) -> None:
        """Nothing is buffered."""


def said(found: ValidationMetrics) -> str:
    """A validation in a line: each source's loss with those of its buckets, then needles."""
    words = []
    for name, value in found.metrics.items():
        kind, _, rest = name.partition("/")
        if kind == "loss" and "/" not in rest:
            words.append(f"loss of {rest} {value:.4f} (perplexity {found.metrics[f'perplexity/{rest}']:.4g})")
        elif kind == "loss":
            words.append(f"at {rest.partition('/')[2]} {value:.4f}")
        elif kind == "needles":
            words.append(f"{100 * value:.0f} % of needles at {rest}")
    return f"validation after step {found.step}: {', '.join(words)}; {duration(found.seconds)}"


class LiveView:
    """A table of the last step's numbers below a progress bar."""

    def __init__(self, first_step: int, last_step: int, interval: int) -> None:
        from rich.console import Console
        from rich.live import Live

        del interval  # redrawn at every step
        self.clock, self.sources = _Clock(first_step, last_step), _Sources()
        self.live = Live(console=Console(stderr=True), refresh_per_second=4, transient=False)
        self.handlers = [
            handler
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        ]
        self.stderr, self.last = sys.stderr, list[tuple[str, str, str, str]]()
        self.live.start()
        for handler in self.handlers:  # sys.stderr is rich's now, which prints above the table
            handler.setStream(sys.stderr)

    def record(self, metrics: StepMetrics) -> None:
        """Redraw the table."""
        self.live.update(self._table(metrics))

    def validated(self, found: ValidationMetrics) -> None:
        """Log it above the table, and keep its numbers in it from the next step on."""
        logger.info("%s", said(found))
        shown = [(name, value) for name, value in found.metrics.items() if name.startswith(("loss/", "needles/"))]
        cells = [(name, f"{value:.4f}" if name[0] == "l" else f"{100 * value:.0f} %") for name, value in shown]
        cells += [("", "")] * (len(cells) % 2)
        self.last = [(*one, *other) for one, other in zip(cells[::2], cells[1::2], strict=True)]

    def _table(self, metrics: StepMetrics) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 3))
        mfu = "" if metrics.mfu is None else f", MFU {100 * metrics.mfu:.1f} %"
        for row in (
            ("step", f"{metrics.step:,} of {self.clock.last_step:,}", "left", self.clock.left(metrics.step)),
            ("loss", f"{metrics.loss:.4f}", "gradient norm", f"{metrics.grad_norm:.3f}"),
            ("learning rate", f"{metrics.learning_rate:.2e}", "samples read", f"{metrics.samples:,}"),
            (
                "tokens/s",
                f"{metrics.tokens_per_second:,.0f}",
                "a rank",
                f"{metrics.tokens_per_second_per_rank:,.0f}, {metrics.tflops_per_rank:.3g} TFLOPS{mfu}",
            ),
            ("step time", f"{metrics.seconds:.2f} s", "memory", f"{metrics.memory_gib:.1f} GiB"),
            *self.last,
        ):
            table.add_row(*row)
        for part in self.sources.newest(metrics):
            table.add_row("of", part)
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=self.clock.last_step, completed=metrics.step, width=60))
        return Group(bar, table)

    def close(self) -> None:
        """Leave the last table standing and give stderr back."""
        self.live.stop()
        for handler in self.handlers:
            handler.setStream(self.stderr)
