"""Progress with a rate and an ETA: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """Counts work done and shows it on stderr, at most once every `every` seconds.

    Args:
        description: what is being done, in a few words.
        total: units of work in all, or None if it is not known.
        unit: what is counted ("documents", "steps").
        every: seconds between two plain lines; a terminal is refreshed ten times as often.
    """

    def __init__(self, description: str, total: int | None, unit: str, every: float = 5.0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.live = sys.stderr.isatty()
        self.every = every / 10 if self.live else every
        self.done = 0
        self.start = self.last = time.monotonic()
        self.width = 0

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units."""
        self.done += amount
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            self._show(now)

    def _show(self, now: float, end: bool = False) -> None:
        rate = self.done / max(now - self.start, 1e-9)
        text = f"{self.description}: {self.done:,}"
        if self.total:
            text += f" of {self.total:,} {self.unit} ({100 * self.done / self.total:.0f} %)"
        else:
            text += f" {self.unit}"
        text += f", {rate:,.1f}/s"
        if end:
            text += f", {duration(now - self.start)} in all"
        elif self.total and rate > 0:
            text += f", {duration((self.total - self.done) / rate)} left"
        if self.live:
            padding = " " * max(0, self.width - len(text))
            self.width = len(text)
            print(f"\r{text}{padding}", end="\n" if end else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._show(time.monotonic(), end=True)
        elif self.live:
            print(file=sys.stderr)


def track(items: Iterable[T], description: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield from `items` and show progress; `total` is taken from `len` where there is one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(description, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def duration(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def seconds_of(text: str) -> int:
    """Seconds of a limit as SLURM writes it, `HH:MM:SS` or `D-HH:MM:SS`.

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text)
    if found is None:
        raise ValueError(f"{text!r}, no time")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
