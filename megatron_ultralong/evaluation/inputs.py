"""What the command line names, read and checked before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError
from megatron_ultralong.evaluation.corpus_texts import iterate_texts
from megatron_ultralong.files import read_json

_RESERVED = {"target_length", "perplexity", "rope_scaling", "seconds", "settings"}


def model_folders(base: Path | None, extended: Path | None, named: Iterable[str]) -> dict[str, Path]:
    """Models by name, the reference first.

    Args:
        base: folder of the model named "base".
        extended: folder of the model named "extended".
        named: NAME=DIR each, instead of the two.

    Raises:
        UserError: no model, both ways at once, a text without "=", or a name that is taken.
    """
    folders = {name: folder for name, folder in (("base", base), ("extended", extended)) if folder is not None}
    pairs = [_pair(text, "model") for text in named]
    if bool(folders) == bool(pairs):
        raise UserError("name the models either by --base and --extended or by --model NAME=DIR, and at least one.")
    for name, folder in pairs:
        if name in folders or name in _RESERVED:
            raise UserError(f"--model {name}={folder}: the name {name!r} is taken; choose another.")
        folders[name] = folder
    return folders


def read_texts(path: Path) -> list[str]:
    """The texts that an input holds, whole and in order: a file, folder or glob, in any format that tokenizing reads.

    Raises:
        UserError: the input is missing or holds no text, or a document cannot be read or is a chat.
    """
    return list(iterate_texts(path))


def read_curves(named: Iterable[str]) -> dict[str, list[dict[str, float]]]:
    """Training curves from NAME=metrics.jsonl each.

    Raises:
        UserError: a file is missing or empty, or a line lacks step, loss or grad_norm.
    """
    curves = {}
    for text in named:
        name, path = _pair(text, "metrics")
        rows = []
        for number, row in _metrics(path):
            if not isinstance(row, dict) or not {"step", "loss", "grad_norm"} <= row.keys():
                raise UserError(
                    f"{path}, line {number}: step, loss or grad_norm is missing; give a run's metrics.jsonl."
                )
            rows.append(row)
        if not rows:
            raise UserError(f"{path}: there is no step in it; give the metrics.jsonl of a run that made one.")
        curves[name] = rows
    return curves


def read_extra(path: Path, models: Iterable[str]) -> dict[str, Any]:
    """Further keys for results.json.

    Raises:
        UserError: not a JSON object, or it would replace a model's results.
    """
    extra = read_json(path, "the file of further results", "give a JSON object")
    if not isinstance(extra, dict):
        raise UserError(f"{path}: it holds a JSON {type(extra).__name__}; give a JSON object.")
    taken = (set(models) | _RESERVED - {"seconds"}) & extra.keys()
    if taken:
        raise UserError(f"{path}: the key {min(taken)!r} is evaluation's own; name it otherwise.")
    return extra


def merge(results: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`results` with the keys of `extra`; objects that both hold are merged, `extra`'s keys first."""
    merged = dict(results)
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**value, **merged[key]} if both else value
    return merged


def _pair(text: str, flag: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"--{flag} {text}: write it as NAME=PATH.")
    return name, Path(path)


def _metrics(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        with Path(path).open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except json.JSONDecodeError as error:
                        raise UserError(
                            f"{path}, line {number}: it is not JSON ({error.msg}); mend the line."
                        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: it cannot be read ({error}); give a run's metrics.jsonl.") from None
