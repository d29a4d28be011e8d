"""Other people's token files as a corpus: checked, their end-of-document ids recognised, and not copied.

What is written is PREFIX.idx over the files where they lie (see `corpus.adopted`), PREFIX.sources.npy,
PREFIX.inputs.tsv and the manifest. An end id is dropped by the index alone: the document is one token shorter in it.
Packing puts separators between documents, so that an end id that stays stands beside a separator.

Cost: one pass over the tokens; memory 8 bytes a document of one file and 16 bytes a document of all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.adopting.end_ids import EndIds, drop_ends, named_end, say_beginnings
from megatron_ultralong.data.adopting.foreign_files import ForeignFile, find_foreign, read_documents
from megatron_ultralong.data.adopting.token_scan import ScannedFile, scan
from megatron_ultralong.data.corpus import corpus
from megatron_ultralong.data.corpus.adopted import AdoptedFile, adopted_fingerprint, blocks_of, starts, write_adopted
from megatron_ultralong.data.corpus.indexed_dataset import idx_path, write_index
from megatron_ultralong.data.corpus.source_ids import write_sources
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.data.tokenizing.existing import recorded
from megatron_ultralong.data.tokenizing.parts import check_sources
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_file, disk_errors_named, fingerprint, read_json, refuse_output
from megatron_ultralong.progress import Progress

logger = logging.getLogger(__name__)

_LONGEST = np.iinfo(np.int32).max
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class AdoptOptions:
    """How files are adopted."""

    adopt: tuple[Path, ...] = ()
    """Instead of --input, tokens that others wrote, checked and used where they are: PREFIX of a .bin and .idx, a .ds
    beside its .ds.index, folders of such, or globs."""
    end_ids: EndIds = "auto"
    """What becomes of the end-of-document id behind adopted documents when they are read; auto drops it in a file of
    which 99 % of the documents end with it."""
    end_id: str = ""
    """That id, or its token; by default the special token of the tokenizer that ends most documents of a file."""


def adopt_files(
    prefix: Path, tokenizer: Tokenizer, options: AdoptOptions, source: str = "", overwrite: bool = False
) -> dict[str, Any]:
    """Write a corpus over files of others, and return its manifest; one that is there already is left as it is.

    Args:
        prefix: PREFIX of the corpus.
        tokenizer: the one that made the tokens.
        options: which files (see `foreign_files.find_foreign`), and what becomes of end ids.
        source: of every document; "": the file's name or, found in a folder, the folder's.
        overwrite: replace another corpus of this prefix.

    Raises:
        UserError: a file is damaged, of another format, or has an id that the tokenizer has not; another corpus would
            be overwritten; no document has a token.
    """
    refuse_output(prefix, "--output-prefix")
    found = find_foreign(options.adopt, prefix)
    if source:
        found = [dataclasses.replace(file, source=source) for file in found]
    made_from = _made_from(found, tokenizer, options)
    if not overwrite and (done := _existing(prefix, made_from)):
        return done
    end = named_end(tokenizer, options.end_id)
    adopted, first_counts = _read(found, tokenizer)
    ends = drop_ends(adopted, tokenizer, options.end_ids, end)
    say_beginnings(tokenizer, first_counts)
    _say_text(tokenizer, adopted[0])
    empty = 0
    for each in adopted:
        kept = each.lengths > 0
        empty += int((~kept).sum())
        each.starts, each.lengths = each.starts[kept], each.lengths[kept].astype(np.int32)
    if not any(len(each.lengths) for each in adopted):
        raise UserError("--adopt: no document has a token; name files with text.")
    about = {
        "empty_documents": empty,
        "skipped_documents": 0,
        "adopted": {"ends": ends},
        **recorded(tokenizer, {"template": None, "append_eod": not all(end["dropped"] for end in ends), "chat": None}),
        "made_from": made_from,
    }
    with disk_errors_named(prefix):
        manifest = _write(prefix, adopted, about)
    counts = f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens, {len(manifest['sources'])} sources"
    logger.info("%s: %s in %s files that stay where they are.", prefix, counts, f"{len(adopted):,}")
    return manifest


def _made_from(found: Sequence[ForeignFile], tokenizer: Tokenizer, options: AdoptOptions) -> str:
    """One name for all that the corpus depends on, from sizes and times of the files."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for file in found
             for path in (file.tokens, file.index)]  # fmt: skip
    sources = [file.source for file in found]
    asked = [corpus.VERSION, tokenizer.fingerprint, options.end_ids, options.end_id, sources, stats]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _existing(prefix: Path, made_from: str) -> dict[str, Any] | None:
    """The manifest of the corpus that is there, if it is this one; None if there is none.

    Raises:
        UserError: there is another, or files without a manifest.
    """
    path = corpus.manifest_path(prefix)
    if path.exists():
        manifest: Any = read_json(path, "the corpus manifest", "remove it, or add --overwrite")
        if not isinstance(manifest, dict) or manifest.get("made_from") != made_from:
            raise UserError(
                f"{path}: exists already, of other files or made with other options; choose another --output-prefix, "
                "or add --overwrite."
            )
        corpus.open_corpus(prefix)
        logger.info("%s: is already there, adopted from the same files in the same way.", prefix)
        return manifest
    for other in corpus.all_files(prefix):
        if other.exists():
            raise UserError(
                f"{other}: exists already, and no {path.name} says that it is a corpus's; choose another "
                "--output-prefix, or add --overwrite."
            )
    return None


def _read(found: Sequence[ForeignFile], tokenizer: Tokenizer) -> tuple[list[ScannedFile], npt.NDArray[np.int64]]:
    """Read all files through; and how many documents begin with each id."""
    check_sources({file.source for file in found})
    indexes = [read_documents(file) for file in found]
    if empty := sum(not index.bounds[-1] for index in indexes):  # of tasks that had no document
        logger.info("%s of %s files hold no token and are left out.", f"{empty:,}", f"{len(found):,}")
    found = [file for file, index in zip(found, indexes, strict=True) if index.bounds[-1]]
    indexes = [index for index in indexes if index.bounds[-1]]
    if not found:
        raise UserError("--adopt: no document has a token; name files with text.")
    for file, index in zip(found, indexes, strict=True):
        if index.dtype != indexes[0].dtype:
            raise UserError(
                f"{file.tokens}: holds {index.dtype.name} and {found[0].tokens} {indexes[0].dtype.name}; adopt them "
                "apart, each with its own --output-prefix."
            )
        if int(np.diff(index.bounds).max(initial=0)) > _LONGEST:
            raise UserError(f"{file.tokens}: has a document of more than {_LONGEST} tokens; split it.")
    sizes = [file.tokens.stat().st_size for file in found]
    adopted, first_counts = [], np.zeros(tokenizer.vocab_size, dtype=np.int64)
    with Progress("checking tokens", sum(sizes), "bytes") as progress:
        for file, index, size in zip(found, indexes, sizes, strict=True):
            mapped = np.memmap(file.tokens, dtype=index.dtype, mode="r")
            seen = scan(file.tokens, mapped, index.bounds, tokenizer.vocab_size, tokenizer.path, progress)
            first_counts += seen.first_counts
            known = AdoptedFile(file.tokens, size, fingerprint(file.tokens, blocks_of(len(found))))
            adopted.append(
                ScannedFile(known, file.source, index.dtype, index.bounds[:-1], np.diff(index.bounds), seen.lasts)
            )
    return adopted, first_counts


def _say_text(tokenizer: Tokenizer, first: ScannedFile) -> None:
    """Show the beginning, by which a wrong tokenizer of the same size is known."""
    tokens = np.fromfile(first.file.path, dtype=first.dtype, count=40)
    logger.info("The first tokens of %s read %r.", first.file.path, tokenizer.decode(tokens.tolist())[:100])


def _write(prefix: Path, adopted: Sequence[ScannedFile], about: dict[str, Any]) -> dict[str, Any]:
    """Write PREFIX.*, the manifest last."""
    names = list(dict.fromkeys(each.source for each in adopted))
    documents = sum(len(each.lengths) for each in adopted)
    files = [each.file for each in adopted]
    dtype, places = adopted[0].dtype, starts([file.bytes for file in files])

    def columns() -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        for each in adopted:
            number = names.index(each.source)
            for begin in range(0, len(each.lengths), _BLOCK):
                lengths = each.lengths[begin : begin + _BLOCK].astype(np.int32)
                yield np.full(len(lengths), number, dtype=np.int32), lengths

    offsets = (each.starts * dtype.itemsize + place for each, place in zip(adopted, places, strict=False))
    with contextlib.ExitStack() as stack:  # renamed in the reverse order: the manifest last
        final = [corpus.manifest_path, idx_path, corpus.sources_path, corpus.inputs_path]
        manifest_file, index, sources, inputs = [stack.enter_context(atomic_file(path(prefix))) for path in final]
        write_index(index, dtype, documents, lambda: (lengths for _, lengths in columns()), offsets)
        write_adopted(inputs, files, corpus.inputs_path(prefix))
        manifest = {
            "version": corpus.VERSION,
            "kind": "text",
            "documents": documents,
            "tokens": sum(int(each.lengths.sum(dtype=np.int64)) for each in adopted),
            **write_sources(sources, names, documents, columns()),
            "tokens_fingerprint": adopted_fingerprint(index, files),
            "inputs": len(files),
            "inputs_fingerprint": fingerprint(inputs),
            **about,
        }
        manifest_file.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in (corpus.manifest_path(prefix), *set(corpus.all_files(prefix)) - {p(prefix) for p in final}):
            path.unlink(missing_ok=True)  # an earlier corpus's
    return manifest
