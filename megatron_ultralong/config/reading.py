"""The run's configuration in and out: strict TOML and overrides in, resolved JSON out.

A typo must cost a second, not a queue slot: a key that the dataclasses of `config` do not know or a value of
another type is named with its line and its mend, and all of them at once. What fits field by field but
cannot run together is `checks`'s, what is written beside a checkpoint `provenance`'s; both are named
here too, so that a caller needs one module. Nothing here imports torch, and reading costs milliseconds.

Overrides are `--section.field value` or `--section.field=value`; they win over the file and may supply what
the file leaves out. A data source is named by its place, `--data.sources.0.index PATH`; the values of a list follow
one another, or stand in one word with commas; "" is a list or a text of nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.config.checks import check_config
from megatron_ultralong.config.sections import RunConfig
from megatron_ultralong.errors import UserError, raise_problems
from megatron_ultralong.provenance import resolved

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["check_config", "load_config", "resolved"]

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]")
_KEY = re.compile(r"\s*([\w.\"'\s-]+?)\s*=")
_MISSING: Any = object()


class _FlagText(str):
    """A value from the command line: text that the field's type has yet to parse."""


class _MismatchError(Exception):
    """A value does not fit its field; the argument says what would."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration: every key known, every value of its field's type.

    Args:
        path: TOML file; its tables are the fields of `config.RunConfig`.
        overrides: command-line words, `--section.field value` or `--section.field=value`.

    Returns:
        The configuration. Paths stay as given, that is relative to the current directory.

    Raises:
        UserError: names everything that is wrong, with file and line or flag, and what is allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path}: the configuration is missing; give --config the path of a TOML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the configuration cannot be read ({error}); give a TOML file in UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}; mend that line.") from None
    reader = _Reader(path, _line_numbers(text))
    reader.override(table, overrides)
    config = reader.section(RunConfig, table, "")
    raise_problems(path, reader.problems)
    return typing.cast(RunConfig, config)


class _Reader:
    """Turns nested tables into dataclasses and collects what is wrong on the way.

    Args:
        path: the file the tables came from, for messages.
        lines: line number of each dotted name in it.
    """

    def __init__(self, path: Path, lines: dict[str, int]) -> None:
        self.path, self.lines = path, lines
        self.problems: list[str] = []

    def where(self, name: str) -> str:
        """File and line of a dotted name, or of the nearest table around it."""
        while name and name not in self.lines:
            name = name.rpartition(".")[0]
        return f"{self.path}, line {self.lines[name]}" if name else f"{self.path}"

    def override(self, table: dict[str, Any], words: Sequence[str]) -> None:
        """Put command-line values into `table`, as text for the fields' types to parse."""
        rest = list(words)
        while rest:
            flag, separator, text = rest.pop(0).partition("=")
            if not flag.startswith("--"):
                self.problems.append(f"{flag!r} on the command line belongs to no flag; give --section.field value.")
                continue
            name = flag[2:].replace("-", "_")
            if not _exists(name):
                self.problems.append(f"{flag} is not a field{_nearest(name, field_names(), '--')}; see --help.")
                separator = separator or (rest.pop(0) if rest and not rest[0].startswith("--") else "=")
            elif not separator and (not rest or rest[0].startswith("--")):
                self.problems.append(f"{flag} has no value; give {flag} VALUE.")
            else:
                value = text if separator else rest.pop(0)
                while not separator and _is_list(name) and rest and not rest[0].startswith("--"):
                    value += f" {rest.pop(0)}"
                self._place(table, name, _FlagText(value), flag)

    def _place(self, table: dict[str, Any], name: str, text: _FlagText, flag: str) -> None:
        """Set one dotted name in nested tables and lists, making tables on the way."""
        here: Any = table
        *parents, last = name.split(".")
        for parent in parents:
            if isinstance(here, list):
                if int(parent) > len(here):
                    self.problems.append(f"{flag} skips a number; the next source is number {len(here)}.")
                    return
                if int(parent) == len(here):
                    here.append({})
                here = here[int(parent)]
            else:
                here = here.setdefault(parent, [] if parent == "sources" else {})
            if not isinstance(here, list if parent == "sources" else dict):
                return  # the file has a plain value where a table belongs: `section` says so
        here[last] = text

    def section(self, kind: type, table: Any, prefix: str) -> Any:
        """Build dataclass `kind` from `table`, or return `_MISSING` after noting why it cannot be built."""
        if not isinstance(table, dict):
            self.problems.append(f"{self.where(prefix)}: {prefix} is {_show(table)}; give a table, [{prefix}].")
            return _MISSING
        dot = f"{prefix}." if prefix else ""
        fields = {field.name: field for field in dataclasses.fields(kind)}
        for key in [key for key in table if key not in fields]:
            what = f"unknown key {dot}{key}" if prefix else f"unknown section [{key}]"
            self.problems.append(f"{self.where(dot + key)}: {what}{_nearest(key, fields, '')}; mend or remove it.")
        hints = typing.get_type_hints(kind)
        values = {}
        for name, field in fields.items():
            if name in table:
                values[name] = self._field(hints[name], table[name], dot + name)
            elif field.default is dataclasses.MISSING:
                if dataclasses.is_dataclass(hints[name]):
                    values[name] = self.section(typing.cast(type, hints[name]), {}, dot + name)
                else:
                    self.problems.append(f"{self.where(prefix)}: {dot}{name} is missing; give {_allowed(hints[name])}.")
                    values[name] = _MISSING
        return _MISSING if _MISSING in values.values() else kind(**values)

    def _field(self, kind: Any, value: Any, name: str) -> Any:
        """The converted value of one field, or `_MISSING` after noting why it does not fit."""
        if dataclasses.is_dataclass(kind):
            return self.section(typing.cast(type, kind), value, name)
        if typing.get_origin(kind) is tuple:
            element = typing.get_args(kind)[0]
            if isinstance(value, _FlagText) and not dataclasses.is_dataclass(element):
                value = [_FlagText(word) for word in re.split(r"[\s,]+", value) if word]
            if isinstance(value, list) and (value or not dataclasses.is_dataclass(element)):
                items = [self._field(element, item, f"{name}.{place}") for place, item in enumerate(value)]
                return _MISSING if _MISSING in items else tuple(items)
        try:
            return _convert(kind, value)
        except _MismatchError as mismatch:
            where = f"--{name}" if isinstance(value, _FlagText) else f"{self.where(name)}: {name}"
            self.problems.append(f"{where} is {_show(value)}; give {mismatch}.")
            return _MISSING


def _convert(kind: Any, value: Any) -> Any:
    """`value` as a plain field type: bool, int, float, str, Path, a Literal, or one of these or None.

    Raises:
        _MismatchError: the value does not fit.
    """
    if isinstance(kind, types.UnionType):
        if isinstance(value, _FlagText) and value.lower() == "none":
            return None
        return _convert(typing.get_args(kind)[0], value)
    if typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return str(value)
    elif kind in (str, Path):
        if isinstance(value, str) and (value or kind is str):
            return kind(str(value))
    elif isinstance(value, _FlagText):
        try:
            parsed = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
            return _convert(kind, parsed)
        except (KeyError, ValueError, TypeError):
            pass
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif type(value) is kind:
        return value
    raise _MismatchError(_allowed(kind))


def _allowed(kind: Any) -> str:
    """What a field of type `kind` takes, in words."""
    if isinstance(kind, types.UnionType):
        return _allowed(typing.get_args(kind)[0])
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        if dataclasses.is_dataclass(element):
            return 'at least one table with an index, such as [{ index = "packed" }]'
        return f"a list, each of it {_allowed(element)}"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", Path: "a path"}
    return names[kind]


def _show(value: Any) -> str:
    """A TOML or command-line value as the user wrote it, near enough, and not too long."""
    text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(name: str, known: Iterable[str], prefix: str) -> str:
    """A guess at what `name` is a typo of; without one, what there is, if that is short; else nothing."""
    known = list(known)
    matches = difflib.get_close_matches(name, known, n=1)
    if matches:
        return f", the nearest is {prefix}{matches[0]}"
    return f" (known: {', '.join(known)})" if len(known) <= 12 else ""


def field_names(kind: type = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted field name, the first data source standing for all."""
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            names += field_names(typing.cast(type, hint), f"{prefix}{name}.")
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(element := typing.get_args(hint)[0]):
            names += field_names(typing.cast(type, element), f"{prefix}{name}.0.")
        else:
            names.append(prefix + name)
    return names


def _exists(name: str) -> bool:
    """Whether a dotted name is a field, whatever the number of its data source."""
    return re.sub(r"\.\d+\.", ".0.", name) in field_names()


def _is_list(name: str) -> bool:
    """Whether a dotted field holds a list of plain values."""
    kind: Any = RunConfig
    for part in name.split("."):
        kind = typing.get_args(kind)[0] if part.isdigit() else typing.get_type_hints(kind)[part]
    return typing.get_origin(kind) is tuple


def _line_numbers(text: str) -> dict[str, int]:
    """Line of every table header and key of a TOML text, by dotted name.

    tomllib keeps no positions. This reads headers and `key =` at the start of a line, which is all our
    sections need; a key inside an inline table is found by the table around it.
    """
    lines: dict[str, int] = {}
    seen: collections.Counter[str] = collections.Counter()
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = re.sub(r"[\"'\s]", "", header[2])
            if header[1] == "[[":
                seen[section] += 1
                lines.setdefault(section, number)
                section = f"{section}.{seen[section] - 1}"
            lines.setdefault(section, number)
        elif key := _KEY.match(line):
            name = re.sub(r"[\"'\s]", "", key[1])
            lines.setdefault(f"{section}.{name}" if section else name, number)
    return lines
