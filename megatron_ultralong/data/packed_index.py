"""The packed index on disk: which tokens of which documents make up each sample. Tokens are never copied.

A folder with `document_ids.npy` (int64 [M], the documents in order), `sample_index.npy` and `manifest.json`.
concatenate: sample_index is int64 [samples + 1, 2], (position in document_ids, token within the document and the
separator behind it) of each border between samples. best_fit: int64 [samples + 1], where each sample's documents
begin in document_ids.

Invariant: the index names (fingerprint) the tokens it was made from, and is made off the training nodes, once.
Cost: one pass over the lengths for concatenate, O(M log M) for best_fit; 24 bytes a document while building.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data import _packing
from megatron_ultralong.data.corpus import Corpus, open_corpus
from megatron_ultralong.data.order import shuffled
from megatron_ultralong.data.packing import UNLIMITED
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_directory, fingerprint, read_json, write_json

logger = logging.getLogger(__name__)

VERSION = 1
_FILES = ("manifest.json", "document_ids.npy", "sample_index.npy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How documents become samples."""

    sequence_length: int
    """S: tokens a sample that the model sees; S + 1 are read, the last one only as a label."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """Join and cut, or keep documents whole."""
    separator: Sequence[int] = ()
    """Ids between two documents (concatenate only)."""
    shuffle_seed: int | None = None
    """Seed of the order of documents; None keeps the corpus's (or the resampled list's) order."""
    overlong: Literal["drop", "cut"] = "drop"
    """best_fit: documents of more than S + 1 tokens are left out, or keep their first S + 1 tokens."""


def write_packed_index(
    corpus: Corpus, folder: Path, options: PackOptions, document_ids: npt.NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Pack a corpus and write the index.

    Args:
        corpus: the tokens.
        folder: where the index goes; an existing one is replaced.
        options: how to pack.
        document_ids: int64 [M], documents to pack, repeats allowed; None for all of the corpus.

    Returns:
        The manifest.

    Raises:
        UserError: the documents do not fill one sample, or an option does not fit.
    """
    _check(corpus, options)
    ids = np.arange(len(corpus.tokens), dtype=np.int64) if document_ids is None else document_ids
    if options.shuffle_seed is not None:
        ids = shuffled(np.ascontiguousarray(ids), options.shuffle_seed, "documents")
    pack = _concatenate if options.packing == "concatenate" else _best_fit
    ids, sample_index, counts = pack(corpus, ids, options)
    with atomic_directory(folder) as temporary:
        np.save(temporary / "document_ids.npy", ids, allow_pickle=False)
        np.save(temporary / "sample_index.npy", sample_index, allow_pickle=False)
        manifest = {
            "version": VERSION,
            "kind": corpus.kind,
            "packing": options.packing,
            "sequence_length": options.sequence_length,
            "samples": len(sample_index) - 1,
            "documents": len(ids),
            **counts,
            "separator": [int(i) for i in options.separator],
            "shuffle_seed": options.shuffle_seed,
            "tokens": os.path.relpath(Path(corpus.prefix).resolve(), Path(folder).resolve()),
            "tokens_fingerprint": corpus.tokens_fingerprint,
            "tokenizer_fingerprint": corpus.tokenizer_fingerprint,
            "vocab_size": corpus.vocab_size,
        }
        write_json(temporary / "manifest.json", manifest)
    logger.info("%s: %s samples of %s tokens.", folder, f"{len(sample_index) - 1:,}", f"{options.sequence_length:,}")
    return manifest


def _check(corpus: Corpus, options: PackOptions) -> None:
    if options.sequence_length < 1:
        raise UserError(f"sequence_length: {options.sequence_length} is no length; give a positive number of tokens.")
    if options.packing == "best_fit" and len(options.separator):
        raise UserError(
            f"separator: {list(options.separator)} has no place between best_fit's whole documents; leave it empty."
        )
    for token in options.separator:
        if not 0 <= token < corpus.vocab_size:
            raise UserError(f"separator: id {token} is not in the vocabulary of {corpus.vocab_size}; mend the ids.")


Packed = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[str, int]]


def _concatenate(corpus: Corpus, ids: npt.NDArray[np.int64], options: PackOptions) -> Packed:
    length = options.sequence_length
    index, total = _packing.build_sample_index(corpus.tokens.lengths, ids, len(options.separator), length)
    samples = max(len(index) - 1, 0)
    if samples == 0:
        raise UserError(
            f"{corpus.prefix}: its {len(ids)} documents give {total} tokens, less than one sample of "
            f"{length + 1}; shorten --sequence-length or add text."
        )
    tail = total - samples * length - 1
    if tail:
        logger.info("the last %s tokens do not fill a sample and are left out.", f"{tail:,}")
    return ids, index, {"tokens_in_all": total, "dropped_tail_tokens": tail}


def _best_fit(corpus: Corpus, ids: npt.NDArray[np.int64], options: PackOptions) -> Packed:
    capacity = options.sequence_length + 1
    longest = capacity if options.overlong == "cut" else UNLIMITED
    order, offsets = _packing.best_fit(corpus.tokens.lengths, ids, capacity, longest)
    lengths = corpus.tokens.lengths[ids].astype(np.int64)
    kept = int(np.minimum(lengths[order], capacity).sum())
    overlong = int((lengths > capacity).sum())
    if overlong:
        verb = "cut to their first" if options.overlong == "cut" else "dropped, being longer than"
        logger.warning("%s of %s documents are %s %s tokens.", f"{overlong:,}", f"{len(ids):,}", verb, f"{capacity:,}")
    if len(order) == 0:
        raise UserError(
            f"{corpus.prefix}: all of its {len(ids)} documents are longer than {capacity} tokens; "
            "raise --sequence-length or give --overlong cut."
        )
    counts = {
        "tokens_in_all": kept,
        "padding_tokens": (len(offsets) - 1) * capacity - kept,
        "overlong_documents": overlong,
        "overlong_tokens": int(lengths.sum()) - kept,
    }
    return ids[order], offsets, counts


@dataclasses.dataclass(frozen=True)
class PackedIndex:
    """An opened index with its corpus; the arrays are memory-mapped."""

    folder: Path
    manifest: dict[str, Any]
    corpus: Corpus
    document_ids: npt.NDArray[np.int64]
    sample_index: npt.NDArray[np.int64]
    fingerprint: str
    """SHA-256 of the index's files."""


def open_packed_index(folder: Path) -> PackedIndex:
    """Open an index and the corpus it was made from.

    Raises:
        UserError: a file is missing, or the tokens on disk are not those that were packed.
    """
    folder = Path(folder)
    again = "pack again with tools/pack_corpus.py"
    manifest = read_json(folder / "manifest.json", "the packed index's manifest", again)
    if manifest.get("version") != VERSION:
        raise UserError(f"{folder}/manifest.json: has version {manifest.get('version')!r}, not {VERSION}; {again}.")
    corpus = open_corpus(Path(os.path.normpath(folder / manifest["tokens"])))
    if corpus.tokens_fingerprint != manifest["tokens_fingerprint"]:
        raise UserError(f"{folder}: was packed from other tokens than those in {corpus.prefix}.bin; {again}.")
    arrays = []
    for name in _FILES[1:]:
        try:
            arrays.append(np.load(folder / name, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / name}: cannot be read ({error}); {again}.") from None
    if len(arrays[0]) != manifest["documents"] or len(arrays[1]) != manifest["samples"] + 1:
        raise UserError(f"{folder}: its arrays are not those that its manifest describes; {again}.")
    digest = hashlib.sha256(" ".join(fingerprint(folder / name) for name in _FILES).encode()).hexdigest()
    return PackedIndex(folder, manifest, corpus, arrays[0], arrays[1], digest)
