"""What a run will do, found out before it does anything: the files, what they hold, the shards, and whether it is done.

Cost: one stat a file, the first document, the footers of Parquet files (once for all array tasks), a hash a shard.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from megatron_ultralong.data.corpus import corpus
from megatron_ultralong.data.tokenizing.documents import Fields
from megatron_ultralong.data.tokenizing.parts import check_sources
from megatron_ultralong.data.tokenizing.parts_folder import RowGroups
from megatron_ultralong.data.tokenizing.peek import kind_of
from megatron_ultralong.data.tokenizing.shards import FileRange, Format, Shard, plan_shards
from megatron_ultralong.data.tokenizing.streams import STDIN
from megatron_ultralong.data.tokenizing.walk import find_files
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json

logger = logging.getLogger(__name__)


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
    return Plan(files, kind_of(files, fields, skip), plan_shards(files, row_groups), row_groups)


def digest(keys: Sequence[str]) -> str:
    """One name for all that a corpus was made from, from its shards' keys."""
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()


def existing(prefix: Path, made_from: str | None, skip: bool) -> dict[str, Any] | None:
    """The manifest of a corpus that is already what is asked for, or None if there is none of this prefix.

    Args:
        prefix: PREFIX.
        made_from: the `digest` that is asked for; None: there is no telling.
        skip: whether malformed documents may have been left out.

    Raises:
        UserError: there is another corpus.
    """
    path = corpus.manifest_path(prefix)
    if not path.exists():
        return None
    manifest: dict[str, Any] = read_json(path, "the corpus manifest", "remove it, or add --overwrite")
    same = isinstance(manifest, dict) and made_from is not None and manifest.get("made_from") == made_from
    if not (same and (skip or not manifest["skipped_documents"])):
        raise UserError(f"{path}: exists already; choose another --output-prefix, or add --overwrite.")
    corpus.open_corpus(prefix)
    logger.info("%s: is already there, made from the same inputs in the same way.", prefix)
    return manifest
