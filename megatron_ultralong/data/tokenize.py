"""Documents to token ids on disk, in the order of the input, with bounded memory.

Documents are read in batches of about 4 million characters, encoded by the tokenizer's own threads, and appended;
so memory is a few times one batch, or a few times the largest document, and 8 bytes for each document. Reading and
encoding take turns in one process: JSON parsing (about 200 MB/s) bounds the speed with gigatoken. All files appear
together at the end; the manifest is renamed last.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ultralong.data import corpus
from megatron_ultralong.data.documents import Document, Fields, read_documents
from megatron_ultralong.data.indexed import IndexedWriter, token_dtype
from megatron_ultralong.data.tokenizer import Tokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_file, fingerprint
from megatron_ultralong.progress import Progress

logger = logging.getLogger(__name__)

_BATCH_CHARACTERS = 1 << 22
_BATCH_DOCUMENTS = 1 << 14
_SAMPLE_DOCUMENTS = 64
_SAMPLE_CHARACTERS = 1 << 20


@dataclasses.dataclass
class _Counts:
    """What has been written so far."""

    sources: dict[str, int] = dataclasses.field(default_factory=dict)
    source_ids: array.array[int] = dataclasses.field(default_factory=lambda: array.array("i"))
    tokens: int = 0
    empty: int = 0


def tokenize_corpus(inputs: Sequence[Path], prefix: Path, tokenizer: Tokenizer, fields: Fields) -> dict[str, Any]:
    """Write the tokenized corpus PREFIX.* (see `corpus`) and return its manifest.

    Documents without any token are left out and counted.

    Raises:
        UserError: an input is missing or malformed, texts and chats are mixed, there is no document, or an input
            would be overwritten.
    """
    first = _first_document(inputs, fields)
    kind = "text" if first.messages is None else "chat"
    _refuse_overwriting(inputs, prefix, kind)
    if kind == "text":
        tokenizer.accelerate(_sample(inputs, fields))
    with contextlib.ExitStack() as stack:
        # Renamed in the reverse order: the manifest last.
        manifest_file = stack.enter_context(atomic_file(corpus.manifest_path(prefix)))
        final = [*corpus.token_files(prefix, kind), corpus.sources_path(prefix)]
        temporary = [stack.enter_context(atomic_file(path)) for path in final]
        counts = _write(_documents(inputs, fields, kind), tokenizer, kind, temporary)
        manifest = {
            "version": corpus.VERSION,
            "kind": kind,
            "documents": len(counts.source_ids),
            "tokens": counts.tokens,
            "empty_documents": counts.empty,
            "sources": list(counts.sources),
            "tokenizer": str(tokenizer.folder),
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "tokens_fingerprint": corpus.combined_fingerprint(temporary[:-1]),
            "inputs": [
                {"path": str(path), "bytes": path.stat().st_size, "fingerprint": fingerprint(path)} for path in inputs
            ],
        }
        manifest_file.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        corpus.manifest_path(prefix).unlink(missing_ok=True)
    logger.info(
        "%s: %s documents, %s tokens, %s sources.",
        prefix,
        f"{manifest['documents']:,}",
        f"{counts.tokens:,}",
        len(counts.sources),
    )
    return manifest


def _first_document(inputs: Sequence[Path], fields: Fields) -> Document:
    for path in inputs:
        for document in read_documents(path, fields):
            return document
    names = ", ".join(map(str, inputs)) or "none"
    raise UserError(f"inputs ({names}): hold no document; name files of JSON Lines with --input.")


def _refuse_overwriting(inputs: Sequence[Path], prefix: Path, kind: str) -> None:
    outputs = [*corpus.token_files(prefix, kind), corpus.sources_path(prefix), corpus.manifest_path(prefix)]
    for path in inputs:
        if path.resolve() in {output.resolve() for output in outputs}:
            raise UserError(f"{path}: the output would overwrite this input; choose another --output-prefix.")


def _documents(inputs: Sequence[Path], fields: Fields, kind: str) -> Iterator[Document]:
    for path in inputs:
        for document in read_documents(path, fields):
            if ("text" if document.messages is None else "chat") != kind:
                raise UserError(
                    f"{document.place}: is {'a chat' if kind == 'text' else 'no chat'}, unlike the documents before "
                    "it; preprocess texts and chats apart."
                )
            yield document


def _sample(inputs: Sequence[Path], fields: Fields) -> list[str]:
    """Beginnings of the first documents of each file."""
    texts = []
    for path in inputs:
        for _, document in zip(range(_SAMPLE_DOCUMENTS), read_documents(path, fields), strict=False):
            texts.append(document.text[: _SAMPLE_CHARACTERS // _SAMPLE_DOCUMENTS])
    return texts


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += document.characters
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write(documents: Iterable[Document], tokenizer: Tokenizer, kind: str, paths: list[Path]) -> _Counts:
    """Encode everything into the token files `paths[:-1]` and the sources' file `paths[-1]`."""
    counts = _Counts()
    index_paths, bin_paths = paths[:-1:2], paths[1:-1:2]
    dtypes = [token_dtype(tokenizer.vocab_size), np.dtype("u1")]
    with contextlib.ExitStack() as stack, Progress("tokenizing", None, "documents") as progress:
        streams = [stack.enter_context(path.open("wb")) for path in bin_paths]
        writers = [IndexedWriter(stream, dtype) for stream, dtype in zip(streams, dtypes, strict=False)]
        for batch in _batches(documents):
            if kind == "text":
                ids, lengths = tokenizer.encode_batch([document.text for document in batch])
                columns = [ids]
            else:
                columns, lengths = _render(batch, tokenizer)
            kept = lengths > 0
            for writer, column in zip(writers, columns, strict=True):
                writer.add(column, lengths[kept])
            for document, keep in zip(batch, kept.tolist(), strict=True):
                if keep:
                    counts.source_ids.append(counts.sources.setdefault(document.source, len(counts.sources)))
            counts.tokens += int(lengths.sum())
            counts.empty += int((~kept).sum())
            progress.advance(len(batch))
    if not counts.source_ids:
        raise UserError("inputs: every document is empty; name files with text in them.")
    for writer, path in zip(writers, index_paths, strict=True):
        writer.write_index(path)
    with paths[-1].open("wb") as stream:
        np.save(stream, np.array(counts.source_ids, dtype=np.int32), allow_pickle=False)
    return counts


def _render(batch: list[Document], tokenizer: Tokenizer) -> tuple[list[Any], Any]:
    """Ids and masks of chats one after the other, and their lengths."""
    rendered = []
    for document in batch:
        try:
            rendered.append(tokenizer.render_chat(document.messages or ()))
        except UserError as error:
            raise UserError(f"{document.place}: {error}") from None
    columns = [np.concatenate(column) for column in zip(*rendered, strict=True)]
    return columns, np.array([len(ids) for ids, _ in rendered], dtype=np.int64)
