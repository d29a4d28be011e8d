"""What a run will do, found out before it does anything: the files, what they hold, the shards, and whether it is done.

Cost: one stat a file (of URLs one list), the first document, the footers of Parquet files (once for all array tasks), a
hash a shard.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from megatron_ultralong.data.tokenizing import urls
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.parts import check_sources
from megatron_ultralong.data.tokenizing.parts_folder import RowGroups
from megatron_ultralong.data.tokenizing.peek import kind_of
from megatron_ultralong.data.tokenizing.shards import FileRange, Format, Shard, for_each, plan_shards
from megatron_ultralong.data.tokenizing.streams import STDIN
from megatron_ultralong.data.tokenizing.walk import find_files
from megatron_ultralong.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """The work of all runs that make one corpus."""

    files: list[FileRange]
    """The input."""
    kind: str
    """"text" or "chat"."""
    shards: list[Shard]
    """The input, cut."""
    row_groups: RowGroups
    """What was read of Parquet files."""

    @property
    def is_stream(self) -> bool:
        """Whether it is standard input, whose contents nothing tells before it is read."""
        return self.files[0].path == STDIN


def make_plan(
    inputs: Sequence[Path | str],
    prefix: Path,
    fields: Fields,
    *,
    format: Format | Literal["auto"],
    skip: bool,
    one_source: bool,
) -> Plan:
    """Look at the input.

    Args:
        inputs: see `find_files`.
        prefix: PREFIX of the corpus.
        fields: names of the fields of documents.
        format: see `find_files`.
        skip: whether malformed documents are left out.
        one_source: whether all documents have one source, whatever their files are called.

    Raises:
        UserError: an input is missing, unreadable or would be overwritten; there is no document; text files alone have
            too many sources.
    """
    files = find_files(inputs, format, prefix)
    if len(files) > 1 and any(file.path == STDIN for file in files):
        raise UserError("--input -: standard input does not go with other inputs; name files.")
    if not one_source:
        check_sources({file.source for file in files if file.format == "text"})
    row_groups = RowGroups(Path(f"{prefix}.parts"))
    for_each([file for file in files if file.format == "parquet" and urls.is_url(file.path)], row_groups)
    return Plan(files, kind_of(files, fields, skip), plan_shards(files, row_groups), row_groups)


def digest(keys: Sequence[str]) -> str:
    """One name for all that a corpus was made from, from its shards' keys."""
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()
