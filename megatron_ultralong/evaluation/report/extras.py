"""What a report shows beside runs: training curves, and whatever else a JSON file says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json

_MEND = "give a run's metrics.jsonl"


def read_extra(path: Path) -> dict[str, Any]:
    """Further keys for the report.

    Raises:
        UserError: not a JSON object.
    """
    extra = read_json(path, "the file of further results", "give a JSON object")
    if not isinstance(extra, dict):
        raise UserError(f"{path}: it holds a JSON {type(extra).__name__}; give a JSON object.")
    return extra


def read_curves(named: Iterable[str]) -> dict[str, list[dict[str, float]]]:
    """Training curves from NAME=metrics.jsonl each: stage -> its steps.

    Raises:
        UserError: a file is missing or empty, or a line lacks step, loss or grad_norm.
    """
    curves = {}
    for words in named:
        name, equals, path = words.partition("=")
        if not (name and equals and path):
            raise UserError(f"--metrics {words}: write it as NAME=PATH.")
        rows = []
        for number, row in _lines(Path(path)):
            if not isinstance(row, dict) or not {"step", "loss", "grad_norm"} <= row.keys():
                raise UserError(f"{path}, line {number}: step, loss or grad_norm is missing; {_MEND}.")
            rows.append(row)
        if not rows:
            raise UserError(f"{path}: there is no step in it; {_MEND} that made one.")
        curves[name] = rows
    return curves


def _lines(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except json.JSONDecodeError as error:
                        raise UserError(
                            f"{path}, line {number}: it is not JSON ({error.msg}); mend the line."
                        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: it cannot be read ({error}); {_MEND}.") from None
