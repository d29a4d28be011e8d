"""Timing on a device under a limit of time, and what does not fit said instead of raised.

On a GPU times are CUDA events', so they are the device's and not the host's; on a CPU the host's clock.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

logger = logging.getLogger(__name__)

Row = dict[str, Any]
OUT_OF_MEMORY = "out of memory"
_REPEATS = 10

clock = time.perf_counter
"""A CPU's; a benchmark on a machine that others use sets time.thread_time."""


class Clock:
    """Seconds that a section of the measurements may still take."""

    def __init__(self, limit: float) -> None:
        self.limit, self.started = limit, time.monotonic()

    @property
    def left(self) -> float:
        """May be negative."""
        return self.limit - (time.monotonic() - self.started)


@dataclasses.dataclass
class Timed:
    """Seconds of one call, and how many calls they are the median of."""

    seconds: float
    calls: int


def timed(call: Callable[[], Any], device: torch.device, limit: float) -> Timed:
    """The median of as many calls as fit into `limit` seconds, at most ten, after one that warms up.

    Args:
        call: what is measured.
        device: where it computes.
        limit: seconds for all calls; one that takes more than twice as much is made once, and that one counts.
    """
    first = _once(call, device)
    if first > 2 * limit:
        return Timed(first, 1)
    repeats = int(min(_REPEATS, max(1, limit / max(first, 1e-6) - 1)))
    return Timed(statistics.median(_once(call, device) for _ in range(repeats)), repeats)


def _once(call: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        begun = clock()
        call()
        return clock() - begun
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def attempt(row: Row, call: Callable[[], Any]) -> bool:
    """Make the call; running out of memory puts `left_out` into the row, and frees what was held.

    Returns:
        Whether there was enough.
    """
    try:
        call()
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of the latter
        if not _is_out_of_memory(error):
            raise
        row["left_out"] = OUT_OF_MEMORY
    enough = row.get("left_out") != OUT_OF_MEMORY
    if not enough:  # not in the handler, whose traceback holds tensors
        free()
    return enough


def _is_out_of_memory(error: BaseException) -> bool:
    """PyTorch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "not enough memory" in str(error) or "CUDA out of memory" in str(error)


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sweep(
    rows: Iterable[Row], size: str, measure: Callable[[Row, float], None], clock: Clock, power: int = 2
) -> list[Row]:
    """Fill in rows of rising size, each if it is likely to end in time, until one runs out of memory.

    Args:
        rows: what each row is; `measure` adds to it what it found.
        size: the key of a row that says how large it is.
        measure: given a row and seconds in which it should have measured; it may say `left_out` itself.
        clock: of the whole sweep.
        power: of the size, by which time is expected to grow at most.
    """
    found: list[Row] = []
    last: tuple[int, float] | None = None
    for row in rows:
        found.append(row)
        expected = 0.0 if last is None else last[1] * (row[size] / last[0]) ** power
        if clock.left < expected or clock.left <= 0:
            row["left_out"] = f"it would take about {expected:.0f} s of the {max(clock.left, 0):.0f} s left"
            continue
        begun = time.monotonic()
        if not attempt(row, functools.partial(measure, row, clock.left / 4)) or "left_out" in row:
            break
        last = row[size], time.monotonic() - begun
        logger.info("  %s", said(row))
    return found


def said(row: Row) -> str:
    """A row in one line."""
    parts = (f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    return ", ".join(parts)
