"""A corpus against evaluation files: the report, and the list of documents that are left, which packing takes.

The output is a list as `resampling.listing` has it (document_ids.npy, manifest.json), of every document whose share of
no sample's n-grams reaches `min_coverage`, and overlaps.jsonl, a line for each pair of a document and a sample that
share an n-gram. Tokens are not copied.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_ultralong.data.corpus.corpus import Corpus
from megatron_ultralong.data.decontamination.evaluation_texts import evaluation_files, read_texts
from megatron_ultralong.data.decontamination.ngram_index import Ints, NgramIndex, build_index
from megatron_ultralong.data.decontamination.overlap import Overlaps, corpus_overlaps
from megatron_ultralong.data.decontamination.plain_words import words
from megatron_ultralong.data.resampling.listing import IDS, VERSION, write_ids
from megatron_ultralong.data.tokenizer.token_bytes import token_bytes
from megatron_ultralong.data.tokenizer.tokenizer import Tokenizer
from megatron_ultralong.errors import UserError
from megatron_ultralong.files import atomic_directory, disk_errors_named, fingerprint, refuse_others, write_json

logger = logging.getLogger(__name__)

_PAIRS = "overlaps.jsonl"
_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecontaminationOptions:
    """What counts as overlap."""

    fields: tuple[str, ...] = ()
    """Fields of evaluation samples that make their text; none: see `evaluation_texts`."""
    ngram: int = 13
    """Words of an n-gram."""
    min_coverage: float = 0.5
    """Share of a sample's n-grams from which on a document that has them is dropped."""
    ignore_in_samples: int = 10
    """N-grams in more samples than this are not looked for."""

    def check(self) -> None:
        """Refuse what is out of its range.

        Raises:
            UserError: the first such option.
        """
        if self.ngram < 1:
            raise UserError(f"--ngram {self.ngram}: is no number of words; give 1 or more, 13 as the field does.")
        if not 0 < self.min_coverage <= 1:
            raise UserError(f"--min-coverage {self.min_coverage}: is no share; give a number over 0, up to 1.")
        if self.ignore_in_samples < 1:
            raise UserError(f"--ignore-in-samples {self.ignore_in_samples}: leaves no n-gram; give 1 or more.")


@dataclasses.dataclass(frozen=True)
class _Samples:
    """All samples. S of them in F files, which `paths` and `fingerprints` name."""

    paths: list[str]
    fingerprints: list[str]
    files: npt.NDArray[np.int64]
    """int64 [S]: the file of each."""
    places: list[str]
    numbers: list[npt.NDArray[np.int32]]
    words: list[bytes]
    """Every word of them; its number is its place, from 1."""


def write_clean_list(
    corpus: Corpus,
    against: Sequence[str],
    folder: Path,
    tokenizer: Tokenizer,
    options: DecontaminationOptions,
    workers: int,
) -> dict[str, Any]:
    """Look for the samples of evaluation files in a corpus, write the list with its report, and return the report.

    Args:
        corpus: texts or chats.
        against: evaluation files, folders or globs, or URLs of them.
        folder: to write.
        tokenizer: of the corpus.
        options: see there.
        workers: processes.

    Raises:
        UserError: an option is out of its range, a file cannot be read, no sample is long enough, every document would
            be dropped, or the folder holds other things.
    """
    options.check()
    refuse_others(folder, [IDS, "manifest.json", _PAIRS])
    samples = _read_samples(against, folder, options)
    index = build_index(samples.numbers, options.ngram, options.ignore_in_samples)
    best, kept = np.zeros(len(samples.numbers)), np.ones(len(corpus.tokens), dtype=np.bool_)
    holders = np.zeros((len(samples.paths), 2), dtype=np.int64)
    with disk_errors_named(folder), atomic_directory(folder) as temporary:
        with (temporary / _PAIRS).open("wb") as stream:
            for found in corpus_overlaps(corpus, index, samples.words, token_bytes(tokenizer), workers):
                coverage = found.shared / index.totals[found.samples]
                np.maximum.at(best, found.samples, coverage)
                dropped = coverage >= options.min_coverage
                kept[found.documents[dropped]] = False
                holders += _holders(found, dropped, samples)
                stream.writelines(_lines(found, coverage, samples, index))
        report = _report(corpus, folder, options, samples, index, best, kept, holders)
        _say(report, options)
        if not report["documents_after"]:
            raise UserError(
                f"{corpus.prefix}: every document overlaps; raise --min-coverage above {options.min_coverage}."
            )
        write_ids(temporary / IDS, report["documents_after"], _blocks(kept))
        report["fingerprint"] = fingerprint(temporary / IDS)
        write_json(temporary / "manifest.json", report)
    left = [f"{report[name]:,}" for name in ("documents_after", "documents_before", "tokens_after", "tokens_before")]
    logger.info("%s: %s of %s documents and %s of %s tokens are left; %s has each pair.", folder, *left, _PAIRS)
    return report


def _read_samples(against: Sequence[str], folder: Path, options: DecontaminationOptions) -> _Samples:
    vocabulary: dict[bytes, int] = {}
    files, places, numbers = [], [], []
    found = evaluation_files(against, folder)
    for number, file in enumerate(found):
        for sample in read_texts(file, options.fields):
            own = [
                vocabulary.setdefault(word, len(vocabulary) + 1) for word in words(sample.text.encode(errors="replace"))
            ]
            files.append(number)
            places.append(sample.place)
            numbers.append(np.array(own, dtype=np.int32))
    return _Samples(
        paths=[file.path for file in found],
        fingerprints=[file.fingerprint() for file in found],
        files=np.array(files, dtype=np.int64),
        places=places,
        numbers=numbers,
        words=list(vocabulary),
    )


def _holders(found: Overlaps, dropped: npt.NDArray[np.bool_], samples: _Samples) -> Ints:
    """int64 [F, 2]: documents that share anything with a sample of each file, and that are dropped for one."""
    counts = []
    for chosen in (found.shared > 0, dropped):
        pairs = np.unique(np.stack([samples.files[found.samples[chosen]], found.documents[chosen]]), axis=1)
        counts.append(np.bincount(pairs[0], minlength=len(samples.paths)))
    return np.stack(counts, axis=1).astype(np.int64)


def _lines(found: Overlaps, coverage: npt.NDArray[np.float64], samples: _Samples, index: NgramIndex) -> list[bytes]:
    """A pair each, as JSON Lines."""
    columns = (found.documents, found.samples, found.shared, coverage, found.ngrams)
    lines = []
    for document, sample, shared, share, ngram in zip(*(column.tolist() for column in columns), strict=True):
        start = int(index.first[ngram])
        text = b" ".join(samples.words[i - 1] for i in index.numbers[start : start + index.n].tolist())
        row = {
            "document": document,
            "file": samples.paths[samples.files[sample]],
            "sample": samples.places[sample],
            "coverage": round(share, 4),
            "shared_ngrams": shared,
            "ngram": text.decode(errors="replace"),
        }
        lines.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return lines


def _blocks(kept: npt.NDArray[np.bool_]) -> Any:
    """The ids of the documents that are kept, in pieces."""
    for begin in range(0, len(kept), 1 << 20):
        yield begin + np.flatnonzero(kept[begin : begin + (1 << 20)])


def _report(
    corpus: Corpus,
    folder: Path,
    options: DecontaminationOptions,
    samples: _Samples,
    index: NgramIndex,
    best: npt.NDArray[np.float64],
    kept: npt.NDArray[np.bool_],
    holders: Ints,
) -> dict[str, Any]:
    """The manifest but for the list's fingerprint."""
    short = np.array([len(numbers) < options.ngram for numbers in samples.numbers])
    against = []
    for number, path in enumerate(samples.paths):
        own = samples.files == number
        against.append(
            {
                "file": path,
                "fingerprint": samples.fingerprints[number],
                "samples": int(own.sum()),
                "too_short": int((own & short).sum()),
                "all_ngrams_common": int((own & ~short & (index.totals == 0)).sum()),
                "found": int((own & (best > 0)).sum()),
                "covered": int((own & (best >= options.min_coverage)).sum()),
                "documents": int(holders[number, 0]),
                "dropped_documents": int(holders[number, 1]),
            }
        )
    lengths = corpus.tokens.lengths
    return {
        "version": VERSION,
        "tokens": os.path.relpath(Path(corpus.prefix).resolve(), Path(folder).resolve()),
        "tokens_fingerprint": corpus.tokens_fingerprint,
        "decontaminated": {
            **dataclasses.asdict(options),
            "fields": list(options.fields),
            "against": {row["file"]: row["fingerprint"] for row in against},
        },
        "ngrams": len(index.hashes),
        "documents_before": len(kept),
        "documents_after": int(kept.sum()),
        "tokens_before": int(lengths.sum(dtype=np.int64)),
        "tokens_after": int(lengths[kept].sum(dtype=np.int64)),
        "against": against,
    }


def _say(report: dict[str, Any], options: DecontaminationOptions) -> None:
    """The table, the longest rows first, and what could not be looked for."""
    rows = sorted(report["against"], key=lambda row: (-row["dropped_documents"], -row["documents"]))
    columns = ("samples", "found", "covered", "documents", "dropped_documents")
    heads = ("samples", "found", "covered", "documents", "dropped", "file")
    lines = ["  ".join(f"{head:>9}" for head in heads[:-1]) + f"  {heads[-1]}"]
    lines += ["  ".join(f"{row[name]:>9,}" for name in columns) + f"  {row['file']}" for row in rows[:_SHOWN]]
    if len(rows) > _SHOWN:
        lines.append(f"and {len(rows) - _SHOWN} files more, in manifest.json")
    logger.info("%s", "\n".join(lines))
    logger.info(
        "found: samples of which a document has a %s-gram; covered: of which one has %g of them or more; documents:"
        " that have one; dropped: that have so many.",
        *(options.ngram, options.min_coverage),
    )
    for name, why in (
        ("too_short", f"have fewer than {options.ngram} words and are not looked for; lower --ngram for them"),
        (
            "all_ngrams_common",
            f"share all their n-grams with over {options.ignore_in_samples} others and are not looked for; raise "
            "--ignore-in-samples for them",
        ),
    ):
        if count := sum(row[name] for row in rows):
            logger.warning("%s of %s samples %s.", f"{count:,}", f"{sum(row['samples'] for row in rows):,}", why)
