"""Evaluation samples as texts: what tools/evaluate.py makes, benchmarks as JSON Lines, JSON or Parquet, plain texts.

Of a sample of tools/evaluate.py (and RULER's, which has the same fields) the text is its turns, its prompt and its
first reference; of another object the fields that are asked for, or all strings in it, in order; of a text file all of
it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from megatron_ultralong.data.tokenizing.compression import StreamError
from megatron_ultralong.data.tokenizing.json_file import begins_as_lines, read_value
from megatron_ultralong.data.tokenizing.parquet import every_row
from megatron_ultralong.data.tokenizing.shards import FileRange
from megatron_ultralong.data.tokenizing.streams import byte_blocks, line_blocks
from megatron_ultralong.data.tokenizing.walk import find_files
from megatron_ultralong.errors import UserError

_NO_TEXT = ("role", "from")
_LIST = "made.json"  # beside the samples of tools/evaluate.py make


@dataclasses.dataclass(frozen=True)
class EvaluationText:
    """One sample."""

    place: str
    """Its line, or its number in a file of another format, from 1."""
    text: str
    """All of it that could be learnt by heart."""


def evaluation_files(paths: Sequence[str], output: Path) -> list[FileRange]:
    """The files that paths, folders and globs name (see `walk.find_files`), but for the lists that tell of samples.

    Args:
        paths: of --against.
        output: the folder that is written; what an earlier run wrote there is no evaluation file.

    Raises:
        UserError: no file is left; or see `walk.find_files`.
    """
    files = [file for file in find_files(paths, flag="--against") if Path(file.path).name != _LIST]
    files = [file for file in files if output.resolve() not in Path(file.path).resolve().parents]
    if not files:
        raise UserError("--against: names no evaluation file; give their files, folders or globs.")
    return files


def read_texts(file: FileRange, fields: Sequence[str]) -> Iterator[EvaluationText]:
    """The samples of one file, in order.

    Args:
        file: one of `evaluation_files`.
        fields: names of the fields that make the text; none: see the module.

    Raises:
        UserError: it cannot be read, or an object lacks a field.
    """
    try:
        if file.format == "text":
            yield EvaluationText("1", b"".join(byte_blocks(file.path)).decode(errors="replace"))
            return
        for number, row in _rows(file):
            where = f"{file.path}, {'line' if file.format == 'jsonl' else 'row'} {number}"
            yield EvaluationText(str(number), _text(row, fields, where))
    except StreamError as error:
        raise UserError(f"{file.path}: {error}") from None


def _rows(file: FileRange) -> Iterator[tuple[int, Any]]:
    if file.format == "parquet":
        yield from enumerate(every_row(file.path), start=1)
    elif file.format == "json" and not begins_as_lines(file.path):
        values = (value for some in read_value(file.path) for value in some)
        yield from ((i, orjson.loads(v) if isinstance(v, bytes) else v) for i, v in enumerate(values, start=1))
    else:
        lines = (line for some in line_blocks(byte_blocks(file.path)) for line in some)
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _parsed(line, f"{file.path}, line {number}")


def _parsed(line: bytes, where: str) -> Any:
    try:
        return orjson.loads(line)
    except ValueError:
        try:
            return json.loads(line.decode("utf-8-sig", errors="replace"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: is not JSON ({error}); mend it, or give the file another ending.") from None


def _text(row: Any, fields: Sequence[str], where: str) -> str:
    if fields:
        for name in fields:
            if not isinstance(row, dict) or row.get(name) is None:
                present = ", ".join(row) if isinstance(row, dict) else "none"
                raise UserError(f"{where}: has no field '{name}' (its fields: {present}); name others with --fields.")
        return "\n".join(text for name in fields for text in _strings(row[name]))
    if isinstance(row, dict) and isinstance(row.get("input"), str) and isinstance(row.get("outputs"), list):
        parts = [row.get("turns"), row["input"], row.get("answer_prefix"), row["outputs"][:1]]
        return "\n".join(text for part in parts for text in _strings(part))
    return "\n".join(_strings(row))


def _strings(value: Any) -> Iterator[str]:
    """All strings in a value, but for who speaks in a chat."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            if name not in _NO_TEXT:
                yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
