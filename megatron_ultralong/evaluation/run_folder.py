"""A run's folder on disk: what was asked of which model, every answer as it came, and the scores.

docs/evaluation_runs.md states the format. Answers are appended a line at a time, so that a kill loses at most the one
that was being written; run.json and results.json are replaced whole. No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import orjson

from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json

FORMAT = 1
"""Of run.json and results.json; files of another are refused."""

RUN, SAMPLES, WINDOWS, RESULTS, PROMPTS = "run.json", "samples.jsonl", "windows.jsonl", "results.json", "prompts"

How = Literal["generate", "judge"]
"""The answer was generated, or its reference judged by teacher forcing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """A line of samples.jsonl; docs/evaluation_runs.md says what each field holds."""

    task: str
    index: int
    length: int
    prompt_tokens: int
    budget: int
    depth: float | None
    place: tuple[int, int] | None
    excerpt: tuple[str, str, str] | None
    prompt_hash: str
    how: How
    references: tuple[str, ...]
    answer: str | None
    score: float
    log_likelihood: float | None
    finished: bool
    over_budget: bool
    seconds: float
    haystack_repeats: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A line of windows.jsonl: the losses of one window of a held-out document, summed by position."""

    task: str
    index: int
    length: int
    prompt_hash: str
    buckets: tuple[tuple[int, int, float, int], ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as a reader finds it; `answers` and `windows` read the lines when they are asked for."""

    folder: Path
    header: dict[str, Any]
    results: dict[str, Any]

    @property
    def name(self) -> str:
        """How reports call the model."""
        return str(self.header["name"])

    def answers(self) -> Iterator[Answered]:
        """The lines of samples.jsonl, a torn last one left out."""
        return (_answered(row) for row in read_lines(self.folder / SAMPLES))

    def windows(self) -> Iterator[Window]:
        """The lines of windows.jsonl, a torn last one left out."""
        return (_window(row) for row in read_lines(self.folder / WINDOWS))


def read_run(folder: Path) -> Run:
    """Open a run that is finished, or under way.

    Raises:
        UserError: run.json or results.json is missing, broken or of another format.
    """
    folder = Path(folder)
    return Run(folder, _read_header(folder / RUN), _read_header(folder / RESULTS))


def _read_header(path: Path) -> dict[str, Any]:
    found = read_json(path, "a run's file", "name a folder that tools/evaluate.py run has written")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        said = found.get("format") if isinstance(found, dict) else None
        raise UserError(f"{path}: its format is {said!r} and this version reads {FORMAT}; run the evaluation anew.")
    return found


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of an append-only file of JSON lines; none where there is no file. A torn last line is left out.

    Raises:
        UserError: a line before the last is broken, which no kill does.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        torn = 0
        for number, line in enumerate(stream, start=1):
            if torn:
                raise UserError(f"{path}, line {torn}: it is no JSON object; mend it, or begin the run anew.")
            row = _row(line)
            if row is None:
                torn = number
            else:
                yield row


def _row(line: bytes) -> dict[str, Any] | None:
    """The object of a whole line, or None."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _answered(row: dict[str, Any]) -> Answered:
    row = {field.name: row.get(field.name) for field in dataclasses.fields(Answered)}
    for name in ("references", "place", "excerpt"):
        row[name] = None if row[name] is None else tuple(row[name])
    return Answered(**row)


def _window(row: dict[str, Any]) -> Window:
    row = {field.name: row.get(field.name) for field in dataclasses.fields(Window)}
    return Window(**row | {"buckets": tuple(map(tuple, row["buckets"]))})
