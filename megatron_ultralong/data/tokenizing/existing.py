"""What a corpus depends on besides its inputs, and whether the one that is there is what a run would write."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ultralong.data.corpus import corpus
from megatron_ultralong.data.tokenizer.chat import Learnt
from megatron_ultralong.data.tokenizer.chat_template import ChatTemplate
from megatron_ultralong.data.tokenizer.identity import deciding_versions, library_versions, template_fingerprint
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.data.tokenizing.plan import digest
from megatron_ultralong.data.tokenizing.readers import Reading
from megatron_ultralong.data.tokenizing.shards import Shard
from megatron_ultralong.data.tokenizing.streams import STDIN
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import read_json

logger = logging.getLogger(__name__)


def how_made(
    tokenizer: Tokenizer, reading: Reading, append_eod: bool, *, mask: Learnt = "all", chat_date: str = ""
) -> dict[str, Any]:
    """All that decides the tokens of a shard, for its key: parts made otherwise are never taken for it.

    Raises:
        UserError: `mask` or `chat_date` say something of texts, or the tokenizer has no chat template that can be used.
    """
    is_chat = reading.kind == "chat"
    if not is_chat and (mask != "all" or chat_date):
        raise UserError("--mask and --chat-date are for chats and the input holds texts; leave them out.")
    return {
        "version": corpus.VERSION,
        "tokenizer": tokenizer.fingerprint,
        "libraries": deciding_versions(tokenizer.path, library_versions()),
        "template": template_fingerprint(tokenizer.path) if is_chat else None,
        "reading": dataclasses.asdict(reading),
        "append_eod": append_eod,
        "chat": {"mask": mask, "date": ChatTemplate(tokenizer, chat_date).date} if is_chat else None,
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
        "chat": made_by["chat"],
    }


def existing(
    prefix: Path, tokenizer: Tokenizer, shards: Sequence[Shard], made_by: dict[str, Any], skip: bool
) -> dict[str, Any] | None:
    """The manifest of a corpus that is already what a run would write, or None if there is none of this prefix.

    Where only versions of libraries differ, the same texts are the same corpus if the pipeline is the same, which takes
    loading it; of chats they count as another, since templates run in them.

    Args:
        prefix: of the corpus.
        tokenizer: of the run.
        shards: of the run.
        made_by: see `how_made`.
        skip: whether malformed documents may have been left out.

    Raises:
        UserError: there is one that was made from other inputs, in another way, or with libraries that give other ids.
    """
    path = corpus.manifest_path(prefix)
    if not path.exists():
        outputs = [*corpus.token_files(prefix, "chat"), corpus.sources_path(prefix)]
        others = [] if Path(f"{prefix}.parts").is_dir() else [file for file in outputs if file.exists()]
        if others:  # with the parts there, a merge was killed
            raise UserError(
                f"{others[0]}: exists already, and no {path.name} says that it is a corpus's; choose another "
                "--output-prefix, or add --overwrite."
            )
        return None
    manifest: dict[str, Any] = read_json(path, "the corpus manifest", "remove it, or add --overwrite")
    versions = manifest.get("versions", {}) if isinstance(manifest, dict) else {}
    libraries = {name: versions.get(name) for name in made_by["libraries"]}
    keys = [shard.key({**made_by, "libraries": libraries}) for shard in shards]
    same = isinstance(manifest, dict) and manifest.get("made_from") == digest(keys)
    same = same and (skip or not manifest["skipped_documents"])
    same = same and all(piece.path != STDIN for shard in shards for piece in shard.ranges)
    why = ""
    if same and libraries != made_by["libraries"]:
        why = " (made by " + " and ".join(f"{name} {version}" for name, version in libraries.items()) + ")"
        same = made_by["template"] is None and manifest["backend_fingerprint"] == tokenizer.backend_fingerprint
    if not same:
        why = why or _difference(manifest, tokenizer, made_by)
        raise UserError(f"{path}: exists already{why}; choose another --output-prefix, or add --overwrite.")
    corpus.open_corpus(prefix)
    logger.info("%s: is already there, made from the same inputs in the same way.", prefix)
    return manifest


def _difference(manifest: Any, tokenizer: Tokenizer, made_by: dict[str, Any]) -> str:
    """In what a corpus differs from what a run would write, as far as its manifest tells."""
    known = manifest if isinstance(manifest, dict) else {}
    if known.get("tokenizer_fingerprint") != tokenizer.fingerprint:
        return " (of another tokenizer)"
    if known.get("template_fingerprint") != made_by["template"]:
        return " (in another chat template)"
    if known.get("append_eod") != made_by["append_eod"] or known.get("chat") != made_by["chat"]:
        return " (made with other options)"
    return " (of other files, or of these before they were touched; or made with other options)"
