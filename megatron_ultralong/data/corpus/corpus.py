"""A tokenized corpus on disk: PREFIX.bin/.idx, its sources, for chats its loss mask, and the manifest over all.

The manifest PREFIX.json is written last and removed first, so a corpus with a manifest is complete. It holds a
fingerprint of the token files that is checked whenever the corpus is opened; that reads at most 4 MiB a file and
therefore notices other tokens, but not a few bytes changed by hand in a file larger than that. It is small whatever
the corpus: PREFIX.inputs.tsv lists the files that the corpus was made from, and nothing but people reads that, except
of an adopted corpus (see `adopted`), which has no PREFIX.bin: there it names the files of others that hold the tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus.adopted import adopted_fingerprint, check_unchanged, open_adopted, read_adopted
from megatron_ultralong.data.corpus.indexed_dataset import IndexedTokens, bin_path, idx_path, open_indexed
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import fingerprint, read_json

VERSION = 2
_NAMES = ("kind", "tokens_fingerprint", "tokenizer_fingerprint", "vocab_size", "sources")


def manifest_path(prefix: Path) -> Path:
    """PREFIX.json."""
    return Path(f"{prefix}.json")


def sources_path(prefix: Path) -> Path:
    """PREFIX.sources.npy: int32 [documents], index into the manifest's list of sources."""
    return Path(f"{prefix}.sources.npy")


def skipped_path(prefix: Path) -> Path:
    """PREFIX.skipped.tsv: place and reason of each malformed document that was left out, if there is one."""
    return Path(f"{prefix}.skipped.tsv")


def inputs_path(prefix: Path) -> Path:
    """PREFIX.inputs.tsv: fingerprint, bytes and path of each file of the input, in order."""
    return Path(f"{prefix}.inputs.tsv")


def mask_prefix(prefix: Path) -> Path:
    """Prefix of the loss mask, an IndexedDataset of uint8 with the documents' lengths."""
    return Path(f"{prefix}.loss_mask")


def combined_fingerprint(paths: list[Path]) -> str:
    """SHA-256 over the fingerprints of several files, in order."""
    return hashlib.sha256(" ".join(fingerprint(path) for path in paths).encode()).hexdigest()


def token_files(prefix: Path, kind: str) -> list[Path]:
    """The files whose contents a packed index depends on."""
    prefixes = [prefix, mask_prefix(prefix)] if kind == "chat" else [prefix]
    return [path for each in prefixes for path in (idx_path(each), bin_path(each))]


def all_files(prefix: Path) -> list[Path]:
    """Every file that a corpus may consist of, the manifest first."""
    others = [sources_path(prefix), inputs_path(prefix), skipped_path(prefix)]
    return [manifest_path(prefix), *token_files(prefix, "chat"), *others]


def is_manifest(path: Path) -> bool:
    """Whether a .json file begins as a corpus's manifest does."""
    try:
        with Path(path).open("rb") as stream:
            return re.match(rb'\{\s*"version": \d+,\s*"kind": "(text|chat)",', stream.read(100)) is not None
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class Corpus:
    """An opened corpus."""

    prefix: Path
    """PREFIX."""
    kind: str
    """"text" or "chat"."""
    tokens: IndexedTokens
    """The documents."""
    loss_mask: IndexedTokens | None
    """For chats: 1 where a token belongs to a response, of the documents' lengths."""
    tokens_fingerprint: str
    """Of the token files."""
    tokenizer_fingerprint: str
    """Of the tokenizer that made them."""
    template_fingerprint: str | None
    """Of the chat templates that rendered them; None for texts."""
    vocab_size: int
    """Ids of that tokenizer, added tokens included."""
    sources: tuple[str, ...]
    """Names of the sources."""

    def source_ids(self) -> npt.NDArray[np.int32]:
        """int32 [documents]: which of `sources` each document is from (read when asked for)."""
        ids: npt.NDArray[np.int32] = np.load(sources_path(self.prefix), mmap_mode="r", allow_pickle=False)
        if len(ids) != len(self.tokens):
            raise UserError(
                f"{sources_path(self.prefix)}: names the source of {len(ids)} documents, but the corpus has "
                f"{len(self.tokens)}; write the tokens again with tools/preprocess_data.py."
            )
        return ids


def open_corpus(prefix: Path, *, believed: bool = False) -> Corpus:
    """Open what tools/preprocess_data.py wrote.

    Args:
        prefix: PREFIX.
        believed: another process has found the token files to be those of the manifest: none of them is read through.

    Raises:
        UserError: a file is missing, or the tokens are not those that the manifest was written for.
    """
    again = "write the tokens again with tools/preprocess_data.py"
    path = manifest_path(prefix)
    manifest: dict[str, Any] = read_json(path, "the corpus manifest", again)
    found = manifest.get("version") if isinstance(manifest, dict) else None
    if found != VERSION:
        raise UserError(f"{path}: has version {found!r}, not {VERSION}; {again}.")
    if missing := [name for name in _NAMES if name not in manifest]:
        raise UserError(f"{path}: lacks '{missing[0]}', as no manifest does that a tool wrote; {again}.")
    kind = manifest["kind"]
    if "adopted" in manifest:
        files = read_adopted(inputs_path(prefix))
        tokens = open_adopted(idx_path(prefix), files)
        if not believed:
            check_unchanged(files)
            if adopted_fingerprint(idx_path(prefix), files) != manifest["tokens_fingerprint"]:
                raise UserError(f"{idx_path(prefix)}: is not the file that {path.name} was written for; adopt again.")
    else:
        tokens = open_indexed(prefix)
    loss_mask = open_indexed(mask_prefix(prefix)) if kind == "chat" else None
    if not believed and "adopted" not in manifest:
        if combined_fingerprint(token_files(prefix, kind)) != manifest["tokens_fingerprint"]:
            raise UserError(f"{bin_path(prefix)}: is not the file that {path.name} was written for; {again}.")
        if loss_mask is not None and not np.array_equal(loss_mask.lengths, tokens.lengths):
            raise UserError(f"{bin_path(mask_prefix(prefix))}: differs in lengths from the tokens; {again}.")
    return Corpus(
        prefix=Path(prefix),
        kind=kind,
        tokens=tokens,
        loss_mask=loss_mask,
        tokens_fingerprint=manifest["tokens_fingerprint"],
        tokenizer_fingerprint=manifest["tokenizer_fingerprint"],
        template_fingerprint=manifest.get("template_fingerprint"),
        vocab_size=manifest["vocab_size"],
        sources=tuple(manifest["sources"]),
    )
