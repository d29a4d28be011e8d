"""What a corpus depends on besides its inputs, and whether the one that is there is what a run would write."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.data.corpus import corpus
from megatron_ultralong.data.tokenizer.identity import deciding_versions, library_versions, template_fingerprint
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.data.tokenizing.readers import Reading
from megatron_ultralong.data.tokenizing.shards import FileRange, Shard
from megatron_ultralong.data.tokenizing.streams import STDIN
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json


def how_made(tokenizer: Tokenizer, reading: Reading, append_eod: bool) -> dict[str, Any]:
    """All that decides the tokens of a shard, for its key: parts made otherwise are never taken for it."""
    return {
        "version": corpus.VERSION,
        "tokenizer": tokenizer.fingerprint,
        "libraries": deciding_versions(tokenizer.path, library_versions()),
        "template": template_fingerprint(tokenizer.path) if reading.kind == "chat" else None,
        "reading": dataclasses.asdict(reading),
        "append_eod": append_eod,
    }


def recorded(tokenizer: Tokenizer, made_by: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of it."""
    return {
        "tokenizer": str(tokenizer.path),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "backend_fingerprint": tokenizer.backend_fingerprint,
        "template_fingerprint": made_by["template"],
        "versions": library_versions(),
        "vocab_size": tokenizer.vocab_size,
        "append_eod": made_by["append_eod"],
    }


def existing(files: Sequence[FileRange], prefix: Path, kind: str) -> dict[str, Any] | None:
    """The manifest of a corpus of this prefix, if there is one.

    Raises:
        UserError: the output would overwrite an input.
    """
    outputs = [*corpus.token_files(prefix, kind), corpus.sources_path(prefix), corpus.manifest_path(prefix)]
    for file in files:
        if os.path.realpath(file.path) in {os.path.realpath(output) for output in outputs}:
            raise UserError(f"{file.path}: the output would overwrite this input; choose another --output-prefix.")
    path = corpus.manifest_path(prefix)
    if not path.exists():
        return None
    manifest: dict[str, Any] = read_json(path, "the corpus manifest", "remove it, or add --overwrite")
    return manifest


def check_same(
    prefix: Path,
    manifest: dict[str, Any],
    tokenizer: Tokenizer,
    shards: Sequence[Shard],
    made_by: dict[str, Any],
    skip: bool,
) -> None:
    """Refuse a corpus that is not what a run would write.

    Where only versions of libraries differ, the same texts are the same corpus if the pipeline is the same, which takes
    loading it; of chats they count as another, since templates run in them.

    Args:
        prefix: of the corpus.
        manifest: of the corpus.
        tokenizer: of the run.
        shards: of the run.
        made_by: see `how_made`.
        skip: whether malformed documents may have been left out.

    Raises:
        UserError: it was made from other inputs, in another way, or with libraries that give other ids.
    """
    versions = manifest.get("versions", {})
    libraries = {name: versions.get(name) for name in made_by["libraries"]}
    same = manifest.get("shards") == [shard.key({**made_by, "libraries": libraries}) for shard in shards]
    same = same and (skip or not manifest.get("skipped_documents"))
    same = same and all(piece.path != STDIN for shard in shards for piece in shard.ranges)
    why = ""
    if same and libraries != made_by["libraries"]:
        why = " (made by " + " and ".join(f"{name} {version}" for name, version in libraries.items()) + ")"
        same = made_by["template"] is None and manifest["backend_fingerprint"] == tokenizer.backend_fingerprint
    if not same:
        path = corpus.manifest_path(prefix)
        raise UserError(f"{path}: exists already{why}; choose another --output-prefix, or add --overwrite.")
