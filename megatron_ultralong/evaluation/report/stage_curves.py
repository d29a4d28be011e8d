"""Curves of training: the steps and the validations of a stage, from its metrics.jsonl."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError

_MEND = "give a run's metrics.jsonl"

Series = list[tuple[int, float]]
"""(step, value), in order."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run.

    Attributes:
        steps: rows of optimizer steps.
        validations: rows of validations, whose metrics are in `validation`.
    """

    steps: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]] = ()

    def of_steps(self, field: str) -> Series:
        """A field by step, where it was finite."""
        return [(row["step"], row[field]) for row in self.steps if row[field] is not None]

    def of_validations(self, kind: str) -> dict[str, Series]:
        """Every metric of a kind ("loss", "needles"), what is validated -> by step, where it was finite."""
        found: dict[str, Series] = {}
        for row in self.validations:
            for name, value in row["validation"].items():
                first, _, rest = name.partition("/")
                if first == kind and value is not None:
                    found.setdefault(rest, []).append((row["step"], value))
        return found


def read_curves(named: Iterable[str]) -> dict[str, Stage]:
    """Training curves from NAME=metrics.jsonl each: stage -> its rows.

    Raises:
        UserError: a file is missing or empty, or a line lacks step, loss or grad_norm.
    """
    curves = {}
    for words in named:
        name, equals, path = words.partition("=")
        if not (name and equals and path):
            raise UserError(f"{words}: a run's metrics.jsonl is given as NAME=PATH.")
        curves[name] = _read(Path(path))
    return curves


def _read(path: Path) -> Stage:
    steps, validations = [], []
    for number, row in _lines(path):
        if isinstance(row, dict) and "step" in row and isinstance(row.get("validation"), dict):
            validations.append(row)
        elif isinstance(row, dict) and {"step", "loss", "grad_norm"} <= row.keys():
            steps.append(row)
        else:
            raise UserError(f"{path}, line {number}: step, loss or grad_norm is missing; {_MEND}.")
    if not any(row["loss"] is not None and row["grad_norm"] is not None for row in steps):
        raise UserError(f"{path}: there is no step in it; {_MEND} that made one.")
    return Stage(steps, validations)


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
