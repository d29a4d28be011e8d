"""The packed index on disk: which tokens of which documents make up each sample. Tokens are never copied.

A folder with `document_ids.npy` (int64 [M], the documents in order), `sample_index.npy` and `manifest.json`.
concatenate: sample_index is int64 [samples + 1, 2], (position in document_ids, token within the document and the
separator behind it) of each border between samples. best_fit: int64 [samples + 1], where each sample's documents
begin in document_ids.

Invariants: the index holds the fingerprints of its own arrays, of the tokens and of the resampled list it was made
from; it is made off the training nodes, once, and a rank that opens it checks it and never makes another. Its own
fingerprint is that of all this, wherever the folders lie. Cost: building takes a few passes over the lengths and
32 bytes a document (best_fit: 56); opening maps the arrays and reads at most 4 MiB of each file, or headers alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.corpus.corpus import Corpus, manifest_path, open_corpus
from megatron_ultralong.data.packing import _packing
from megatron_ultralong.data.packing.specification import UNLIMITED
from megatron_ultralong.data.resampling.listing import Documents
from megatron_ultralong.data.shuffle import key, shuffled
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import (
    atomic_directory,
    disk_errors_named,
    fingerprint,
    read_json,
    refuse_others,
    write_json,
)

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
VERSION = 2
_ARRAYS = ("document_ids", "sample_index")
_AGAIN = "pack again with tools/pack_corpus.py"
_LONGEST = np.iinfo(np.int32).max - 1


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
    last_sample: Literal["drop", "keep"] = "drop"
    """concatenate: tokens that do not fill a last sample are left out, or are a sample with padding behind them."""
    overlong: Literal["drop", "cut"] = "drop"
    """best_fit: documents of more than S + 1 tokens are left out, or keep their first S + 1 tokens."""


def write_packed_index(
    corpus: Corpus, folder: Path, options: PackOptions, documents: Documents | None = None
) -> dict[str, Any]:
    """Pack a corpus and write the index.

    Args:
        corpus: the tokens.
        folder: where the index goes; an existing one is replaced.
        options: how to pack.
        documents: the documents to pack, repeats allowed (see `listing.read_documents`); None for all of the
            corpus.

    Returns:
        The manifest.

    Raises:
        UserError: the documents do not fill one sample, an option does not fit, or the folder holds other things.
    """
    refuse_others(folder, [*(f"{name}.npy" for name in _ARRAYS), "manifest.json"])
    _check(corpus, options)
    ids = _documents_in_order(corpus, options, documents)
    pack = _concatenate if options.packing == "concatenate" else _best_fit
    ids, sample_index, counts = pack(corpus, ids, options)
    with disk_errors_named(folder), atomic_directory(folder) as temporary:
        for name, array in zip(_ARRAYS, (ids, sample_index), strict=True):
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        manifest = {
            "version": VERSION,
            "kind": corpus.kind,
            **dataclasses.asdict(options),
            "separator": [int(i) for i in options.separator],
            "samples": len(sample_index) - 1,
            "documents": len(ids),
            **counts,
            "tokens": os.path.relpath(Path(corpus.prefix).resolve(), Path(folder).resolve()),
            "tokens_fingerprint": corpus.tokens_fingerprint,
            "tokenizer_fingerprint": corpus.tokenizer_fingerprint,
            "template_fingerprint": corpus.template_fingerprint,
            "vocab_size": corpus.vocab_size,
            "resampled": None if documents is None else documents.made_by,
            "fingerprints": {name: fingerprint(temporary / f"{name}.npy") for name in _ARRAYS},
        }
        write_json(temporary / "manifest.json", manifest)
    logger.info("%s: %s samples of %s tokens.", folder, f"{len(sample_index) - 1:,}", f"{options.sequence_length:,}")
    return manifest


def _documents_in_order(corpus: Corpus, options: PackOptions, documents: Documents | None) -> Ints:
    seed, count = options.shuffle_seed, len(corpus.tokens)
    if documents is not None:
        ids = np.ascontiguousarray(documents.ids)
        return ids if seed is None else shuffled(ids, seed, "documents")
    return np.arange(count, dtype=np.int64) if seed is None else _packing.permutation(count, key(seed, "documents"))


def _check(corpus: Corpus, options: PackOptions) -> None:
    if options.sequence_length < 1:
        raise UserError(f"sequence_length: {options.sequence_length} is no length; give a positive number of tokens.")
    if options.sequence_length > _LONGEST:
        raise UserError(
            f"sequence_length: {options.sequence_length} is more than {_LONGEST}, the longest whose document bounds "
            "fit into int32; give fewer tokens."
        )
    if options.packing == "best_fit" and options.last_sample != "drop":
        raise UserError("last_sample: 'keep' has no meaning for best_fit, which pads every sample; leave it at 'drop'.")
    if options.packing == "best_fit" and len(options.separator):
        raise UserError(
            f"separator: {list(options.separator)} has no place between best_fit's whole documents; leave it empty."
        )
    for token in options.separator:
        if not 0 <= token < corpus.vocab_size:
            raise UserError(f"separator: id {token} is not in the vocabulary of {corpus.vocab_size}; mend the ids.")


Packed = tuple[Ints, Ints, dict[str, int]]


def _concatenate(corpus: Corpus, ids: Ints, options: PackOptions) -> Packed:
    length, keep = options.sequence_length, options.last_sample == "keep"
    index, total = _packing.build_sample_index(corpus.tokens.lengths, ids, len(options.separator), length, keep)
    samples = max(len(index) - 1, 0)
    if samples == 0:
        mend = "add text" if keep else "shorten --sequence-length, give --last-sample keep or add text"
        raise UserError(
            f"{corpus.prefix}: its {len(ids)} documents give {total} tokens, less than one sample of "
            f"{2 if keep else length + 1}; {mend}."
        )
    tail = total - samples * length - 1
    if tail > 0:
        logger.info("the last %s tokens do not fill a sample and are left out.", f"{tail:,}")
    return ids, index, {"tokens_in_all": total, "dropped_tail_tokens": max(tail, 0), "padding_tokens": max(-tail, 0)}


def _best_fit(corpus: Corpus, ids: Ints, options: PackOptions) -> Packed:
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
    padding = (len(offsets) - 1) * capacity - kept
    logger.info("documents by length:\n%s", _by_length(lengths))
    logger.info("padding: %s tokens, %.1f %% of the samples.", f"{padding:,}", 100 * padding / (kept + padding))
    counts = {
        "tokens_in_all": kept,
        "padding_tokens": padding,
        "overlong_documents": overlong,
        "overlong_tokens": int(lengths.sum()) - kept,
    }
    return ids[order], offsets, counts


def _by_length(lengths: Ints) -> str:
    """A line for each power of two: how many documents are at most so long (and over half), and their tokens."""
    powers = np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    documents, tokens = np.bincount(powers), np.bincount(powers, weights=lengths)
    return "\n".join(
        f"  up to {1 << power:>11,} tokens: {documents[power]:>11,} documents, "
        f"{100 * tokens[power] / max(tokens.sum(), 1):5.1f} % of the tokens"
        for power in np.flatnonzero(documents).tolist()
    )


@dataclasses.dataclass(frozen=True)
class PackedIndex:
    """An opened index with its corpus; the arrays are memory-mapped."""

    folder: Path
    manifest: dict[str, Any]
    corpus: Corpus
    document_ids: Ints
    sample_index: Ints
    fingerprint: str
    """SHA-256 of the index's arrays, its options and its tokens, wherever they lie."""


def open_packed_index(folder: Path, believed: str | None = None) -> PackedIndex:
    """Open an index and the corpus it was made from; nothing is built or copied.

    Args:
        folder: written by `write_packed_index`.
        believed: the index's fingerprint as another process of the job found it, with the files behind it; then
            manifests and headers are all that is read here. None: every file's fingerprint is taken.

    Raises:
        UserError: a file is missing or damaged, the tokens on disk are not those that were packed, or the index is not
            the one that is believed.
    """
    folder = Path(folder)
    manifest = read_json(folder / "manifest.json", "the packed index's manifest", _AGAIN)
    found = manifest.get("version") if isinstance(manifest, dict) else None
    if found != VERSION:
        raise UserError(f"{folder}/manifest.json: has version {found!r}, not {VERSION}; {_AGAIN}.")
    if not {"tokens", "packing", "fingerprints"} <= manifest.keys():
        raise UserError(f"{folder}: is no packed index (a resampled list, perhaps); {_AGAIN}.")
    prefix = Path(os.path.normpath(folder / manifest["tokens"]))
    if not manifest_path(prefix).exists():
        raise UserError(
            f"{folder}: its tokens are not at {prefix} (whose {prefix.name}.json is missing); if one of the two was "
            f"moved, move the other as far, or {_AGAIN}."
        )
    corpus = open_corpus(prefix, believed=believed is not None)
    if corpus.tokens_fingerprint != manifest["tokens_fingerprint"]:
        raise UserError(
            f"{folder}: was packed from tokens with the fingerprint {manifest['tokens_fingerprint'][:12]}, but "
            f"{corpus.prefix} has {corpus.tokens_fingerprint[:12]}; bring those tokens back, or {_AGAIN}."
        )
    expected = manifest["fingerprints"] if believed is None else dict.fromkeys(_ARRAYS)
    arrays = [_open_array(folder, name, expected[name]) for name in _ARRAYS]
    rows = (manifest["samples"] + 1, 2) if manifest["packing"] == "concatenate" else (manifest["samples"] + 1,)
    for name, array, shape in zip(_ARRAYS, arrays, ((manifest["documents"],), rows), strict=True):
        if array.dtype != np.int64 or array.shape != shape:
            raise UserError(
                f"{folder}/{name}.npy: is {array.dtype} {list(array.shape)} where its manifest describes int64 "
                f"{list(shape)}; {_AGAIN}."
            )
    content = {entry: value for entry, value in manifest.items() if entry != "tokens"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    if believed is not None and believed != digest:
        raise UserError(
            f"{folder}: has the fingerprint {digest[:12]} here, but {believed[:12]} on the job's first rank; give "
            "all machines the same files."
        )
    return PackedIndex(folder, manifest, corpus, arrays[0], arrays[1], digest)


def _open_array(folder: Path, name: str, expected: str | None) -> npt.NDArray[Any]:
    """The mapped array; `expected`: its file's fingerprint, None to leave that."""
    path = folder / f"{name}.npy"
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        actual = None if expected is None else fingerprint(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_AGAIN}.") from None
    if actual is not None and actual != expected:
        raise UserError(
            f"{path}: has the fingerprint {actual[:12]}, but its manifest was written for {str(expected)[:12]}; "
            f"{_AGAIN}."
        )
    return array
