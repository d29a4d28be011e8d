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
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megatron_ultralong.data.adopting.foreign_files import ForeignFile, find_foreign, read_documents
from megatron_ultralong.data.adopting.token_scan import scan
from megatron_ultralong.data.corpus import corpus
from megatron_ultralong.data.corpus.adopted import AdoptedFile, adopted_fingerprint, blocks_of, starts, write_adopted
from megatron_ultralong.data.corpus.indexed_dataset import idx_path, write_index
from megatron_ultralong.data.corpus.source_ids import write_sources
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.data.tokenizing.existing import recorded
from megatron_ultralong.data.tokenizing.parts import check_sources
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_file, disk_errors_named, fingerprint, read_json
from megatron_ultralong.progress import Progress

logger = logging.getLogger(__name__)

NEARLY_ALL = 0.99
"""Share of the documents from which on a special token that ends them is taken for the end of a document."""
_LONGEST = np.iinfo(np.int32).max
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class AdoptOptions:
    """How files are adopted."""

    end_ids: Literal["auto", "drop", "keep"] = "auto"
    """What becomes of the id that ends documents; "auto": dropped in a file of which `NEARLY_ALL` end with it."""
    end_id: str = ""
    """That id, or its token's text; "": the special token of the tokenizer that ends most documents of a file."""
    source: str = ""
    """The source of every document; "": the file's name or, found in a folder, the folder's."""
    overwrite: bool = False
    """Replace another corpus of this prefix."""


@dataclasses.dataclass
class _Adopted:
    """What is known of one file after its pass."""

    file: AdoptedFile
    source: str
    dtype: np.dtype[Any]
    starts: npt.NDArray[np.int64]
    """Of documents, in tokens."""
    lengths: npt.NDArray[np.int64]
    lasts: npt.NDArray[Any]


def adopt_files(words: Sequence[Path], prefix: Path, tokenizer: Tokenizer, options: AdoptOptions) -> dict[str, Any]:
    """Write a corpus over files of others, and return its manifest; one that is there already is left as it is.

    Args:
        words: see `foreign_files.find_foreign`.
        prefix: PREFIX of the corpus.
        tokenizer: the one that made the tokens.
        options: see there.

    Raises:
        UserError: a file is damaged, of another format, or has an id that the tokenizer has not; another corpus would
            be overwritten; no document has a token.
    """
    found = find_foreign(words, prefix)
    made_from = _made_from(found, tokenizer, options)
    if not options.overwrite and (done := _existing(prefix, made_from)):
        return done
    adopted, first_counts = _read(found, tokenizer, options)
    ends = _drop_ends(adopted, tokenizer, options)
    _say_beginnings(tokenizer, first_counts)
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
    sources = [options.source or file.source for file in found]
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


def _read(
    found: Sequence[ForeignFile], tokenizer: Tokenizer, options: AdoptOptions
) -> tuple[list[_Adopted], npt.NDArray[np.int64]]:
    """Read all files through; and how many documents begin with each id."""
    check_sources({options.source or file.source for file in found})
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
            source = options.source or file.source
            adopted.append(_Adopted(known, source, index.dtype, index.bounds[:-1], np.diff(index.bounds), seen.lasts))
    return adopted, first_counts


def _drop_ends(adopted: Sequence[_Adopted], tokenizer: Tokenizer, options: AdoptOptions) -> list[dict[str, Any]]:
    """Shorten the documents of each file whose end id is dropped, and say what ends how many documents."""
    named = _named(tokenizer, options.end_id) if options.end_id else None
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    without = 0
    for each in adopted:
        filled = each.lengths > 0
        counts = np.bincount(each.lasts[filled], minlength=tokenizer.vocab_size)
        end = _likely(tokenizer, counts) if named is None else named
        share = 0.0 if end is None else float(counts[end] / filled.sum())
        if end is None or not share or (options.end_ids == "auto" and share <= 1 - NEARLY_ALL):
            without += 1
            continue
        dropped = options.end_ids == "drop" or (options.end_ids == "auto" and share >= NEARLY_ALL)
        if dropped:
            each.lengths -= (each.lasts == end) & filled
        group = groups.setdefault(
            (end, dropped), {"id": end, "dropped": dropped, "files": 0, "documents": 0, "documents_with_it": 0}
        )
        for name, count in (("files", 1), ("documents", filled.sum()), ("documents_with_it", counts[end])):
            group[name] += int(count)
    if without:
        what = "a special token" if named is None else _shown(tokenizer, named)
        logger.info("In %s of %s files hardly a document ends with %s.", f"{without:,}", f"{len(adopted):,}", what)
    for group in groups.values():
        _say_end(tokenizer, group, asked=options.end_ids != "auto")
    return list(groups.values())


def _say_end(tokenizer: Tokenizer, group: dict[str, Any], asked: bool) -> None:
    with_it, documents = group["documents_with_it"], group["documents"]
    share = 100 * with_it / documents
    what = f"{with_it:,} of {documents:,} documents ({share:.1f} %) end with {_shown(tokenizer, group['id'])}"
    if group["dropped"]:
        logger.info("%s, which is dropped when they are read: packing sets its own separators.", what)
    else:
        mend = 'pack with --separator "" where it is to be the separator, or adopt with --end-ids drop'
        logger.log(logging.INFO if asked else logging.WARNING, "%s, which is kept; %s.", what, mend)


def _named(tokenizer: Tokenizer, text: str) -> int:
    """The id that a number or a token's text means."""
    ids = [int(text)] if text.isdecimal() else tokenizer.encode(text)
    if len(ids) != 1 or ids[0] >= tokenizer.vocab_size:
        raise UserError(f"--end-id {text}: is no id or token of {tokenizer.path}; give one, such as its eos_token.")
    return ids[0]


def _special(tokenizer: Tokenizer) -> set[int]:
    """Ids of special tokens; none where the tokenizer is a file that names none."""
    if not tokenizer.is_hugging_face:
        return set()
    added = {number for number, token in tokenizer.hf.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.hf.all_special_ids)


def _likely(tokenizer: Tokenizer, counts: npt.NDArray[np.int64]) -> int | None:
    """The special token that ends most documents; None if none ends any."""
    ending = [number for number in sorted(_special(tokenizer)) if counts[number]]
    return max(ending, key=lambda number: int(counts[number]), default=None)


def _shown(tokenizer: Tokenizer, number: int) -> str:
    return f"{tokenizer.decode([number])!r} (id {number})"


def _say_beginnings(tokenizer: Tokenizer, counts: npt.NDArray[np.int64]) -> None:
    """Warn of documents that begin with a special token, which stays."""
    beginning = [number for number in sorted(_special(tokenizer)) if counts[number] > counts.sum() / 2]
    for number in beginning:
        logger.warning(
            "%s of %s documents begin with %s, which stays: it is a separator already.",
            *(f"{counts[number]:,}", f"{counts.sum():,}", _shown(tokenizer, number)),
        )


def _say_text(tokenizer: Tokenizer, first: _Adopted) -> None:
    """Show the beginning, by which a wrong tokenizer of the same size is known."""
    tokens = np.fromfile(first.file.path, dtype=first.dtype, count=40)
    logger.info("The first tokens of %s read %.120r.", first.file.path, tokenizer.decode(tokens.tolist()))


def _write(prefix: Path, adopted: Sequence[_Adopted], about: dict[str, Any]) -> dict[str, Any]:
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
