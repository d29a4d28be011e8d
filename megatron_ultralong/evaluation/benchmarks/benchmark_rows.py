"""Rows of files that benchmarks publish: JSON Lines, one JSON array, CSV or Parquet, each row with its place in words.

Every family reads its data and its predictions through this, so that a file that is none, a line that is broken and a
field that is missing or of another type are said alike. JSON is Python's, which takes the numbers and NaNs that the
benchmarks' own scripts write. A row is held at a time (of a JSON array or a Parquet file, all of it).
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.errors import UserError, listing, shown

PREDICTION = ("prediction", "pred", "response", "output")
"""What a prediction's field may be called; the first that is there counts."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        values: by field.
        place: "FILE, line 3", the beginning of a message.
        index: number in the file, from 0.
        mend: what to do about a wrong file, the end of a message.
    """

    values: dict[str, Any]
    place: str
    index: int
    mend: str

    def name_of(self, *names: str) -> str:
        """The first of `names` that the row has.

        Raises:
            UserError: it has none.
        """
        for name in names:
            if name in self.values:
                return name
        has = listing(sorted(map(str, self.values)), 8) or "nothing"
        raise UserError(
            f"{self.place}: the field {' or '.join(map(repr, names))} is missing (it has {has}); {self.mend}."
        )

    def value(self, *names: str) -> Any:
        """Value of the first of `names` that the row has."""
        return self.values[self.name_of(*names)]

    def text(self, *names: str) -> str:
        """The same of a field that holds a text; null is the empty one.

        Raises:
            UserError: it is missing or holds something else.
        """
        name = self.name_of(*names)
        value = self.values[name]
        if value is None:
            return ""
        if not isinstance(value, str):
            self.refuse(name, "a text")
        return str(value)

    def texts(self, *names: str, empty: bool = False) -> tuple[str, ...]:
        """The same of a field that holds a text or a list of texts and numbers.

        Raises:
            UserError: it is missing, holds something else, or is an empty list where `empty` does not let it.
        """
        name = self.name_of(*names)
        value = self.values[name]
        found = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str | int | float) for each in found) or not (found or empty):
            self.refuse(name, "a text or a list of texts")
        return tuple(map(str, found))

    def refuse(self, name: str, wanted: str) -> None:
        """Say that a field does not hold what it should.

        Raises:
            UserError: always.
        """
        said = repr(self.values[name])
        said = said if len(said) <= 60 else said[:57] + "..."
        raise UserError(f"{self.place}: '{name}' is {said}, and not {wanted}; {self.mend}.")


def matching_files(path: Path, patterns: Sequence[str], mend: str) -> list[Path]:
    """A file itself; of a folder the files in it that match any of some patterns, sorted.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted({each for pattern in patterns for each in path.glob(pattern) if each.is_file()})
    if not found:
        raise UserError(f"{shown(path)}: no file in it is called {' or '.join(patterns)}; {mend}.")
    return found


def read_rows(path: Path, mend: str = "give the file that the benchmark's own scripts write") -> Iterator[Row]:
    """Rows of a file, by the end of its name: .csv, .parquet, else JSON, whether lines or one array.

    Raises:
        UserError: it is missing, holds no row, or is broken; the message names the line.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            begin = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror}); {mend}.") from None
    if path.suffix == ".csv":
        rows, word = _csv_rows(path, mend), "row"
    elif path.suffix == ".parquet":
        rows, word = _parquet_rows(path, mend), "row"
    elif begin == b"[":
        rows, word = enumerate(_array(path, mend), start=1), "item"
    else:
        rows, word = _json_lines(path, mend), "line"
    empty = True
    for index, (number, values) in enumerate(rows):
        empty = False
        place = f"{shown(path)}, {word} {number}"
        if not isinstance(values, dict):
            raise UserError(f"{place}: it is no JSON object; {mend}.")
        yield Row(values, place, index, mend)
    if empty:
        raise UserError(f"{shown(path)}: there is no row in it; {mend}.")


def _json_lines(path: Path, mend: str) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                yield number, _parsed(line, f"{shown(path)}, line {number}", mend)


def _array(path: Path, mend: str) -> list[Any]:
    found = _parsed(path.read_bytes(), shown(path), mend)
    assert isinstance(found, list)
    return found


def _parsed(content: bytes, place: str, mend: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: it is not UTF-8 ({error.reason} at byte {error.start}); {mend}.") from None
    except RecursionError:
        raise UserError(f"{place}: it is nested too deeply to be read; {mend}.") from None
    except ValueError as error:  # broken JSON, or a number of more digits than Python reads
        raise UserError(f"{place}: it is not JSON ({error}); {mend}.") from None


def _csv_rows(path: Path, mend: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        try:
            for number, values in enumerate(reader, start=1):
                if None in values:
                    raise UserError(f"{shown(path)}, row {number}: it has more cells than the first line; {mend}.")
                yield number, {name: value or "" for name, value in values.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{shown(path)}, line {reader.line_num + 1}: it is no CSV ({error}); {mend}.") from None


def _parquet_rows(path: Path, mend: str) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{shown(path)}: Parquet needs pyarrow; pip install 'megatron-ultralong[parquet]'.") from None
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=16):
            for values in batch.to_pylist():
                number += 1
                yield number, values
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{shown(path)}: it is no Parquet file ({' '.join(str(error).split())}); {mend}.") from None
